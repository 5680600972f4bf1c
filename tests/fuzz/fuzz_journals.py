"""Coverage-guided fuzzing of recordings that somebody hands in."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orchestrator.folds"]):
    from tests.security.test_readers_are_total import read_journal

if __name__ == "__main__":
    atheris.Setup(sys.argv, read_journal)
    atheris.Fuzz()
