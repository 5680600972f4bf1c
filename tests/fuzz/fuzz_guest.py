"""Coverage-guided fuzzing of what a guest sends, from its bytes on: the outline, then the message."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orchestrator.sandbox"]):
    from tests.security.test_entry_points_are_total import read_guest

if __name__ == "__main__":
    atheris.Setup(sys.argv, read_guest)
    atheris.Fuzz()
