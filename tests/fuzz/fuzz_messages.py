"""Coverage-guided fuzzing of the agent's messages, held against what protobuf reads in the same bytes."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["guest_messages"]):
    from tests.security.test_entry_points_are_total import read_messages

if __name__ == "__main__":
    atheris.Setup(sys.argv, read_messages)
    atheris.Fuzz()
