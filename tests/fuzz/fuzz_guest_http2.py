"""Coverage-guided fuzzing of the host's HTTP/2, as it reads a hostile guest's bytes."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orchestrator.sandbox"]):
    from orchestrator.sandbox.http2_frames import PREFACE
    from tests.security.test_entry_points_are_total import read_guests_http2


def read(data: bytes) -> None:
    """What follows the preface, which no fuzzer would guess."""
    read_guests_http2(PREFACE + data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
