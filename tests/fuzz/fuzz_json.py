"""Coverage-guided fuzzing of the shape of a document, told without building it."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orchestrator.json_shape"]):
    from tests.security.test_readers_are_total import shape

if __name__ == "__main__":
    atheris.Setup(sys.argv, shape)
    atheris.Fuzz()
