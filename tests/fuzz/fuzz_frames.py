"""Coverage-guided fuzzing of the frames between agent and worker, as the agent reads a hostile worker's."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["guest_frames"]):
    from tests.security.test_readers_are_total import read_frames


def one(data: bytes) -> None:
    read_frames(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
