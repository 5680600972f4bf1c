"""Coverage-guided fuzzing of the agent's HTTP/2 and HPACK, as they read a hostile host's bytes."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["agent_http2", "agent_hpack"]):
    from tests.security.test_entry_points_are_total import read_http2

if __name__ == "__main__":
    atheris.Setup(sys.argv, read_http2)
    atheris.Fuzz()
