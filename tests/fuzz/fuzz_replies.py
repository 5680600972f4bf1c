"""Coverage-guided fuzzing of what a model's reply is taken for."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orchestrator.rlm"]):
    from tests.security.test_readers_are_total import read_reply

if __name__ == "__main__":
    atheris.Setup(sys.argv, read_reply)
    atheris.Fuzz()
