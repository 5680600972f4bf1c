"""Coverage-guided fuzzing of the guest's HTTP/2 and HPACK, the agent's and the worker's, as they read any bytes."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["agent_http2", "guest_hpack", "worker_calls", "worker_http2"]):
    from tests.security.test_entry_points_are_total import read_http2, read_workers_http2


def read_both(data: bytes) -> None:
    read_http2(data)
    read_workers_http2(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read_both)
    atheris.Fuzz()
