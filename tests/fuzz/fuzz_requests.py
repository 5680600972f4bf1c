"""Coverage-guided fuzzing of what a client of the service asks for."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orchestrator.server", "orchestrator.wire"]):
    from tests.security.test_entry_points_are_total import read_requests

if __name__ == "__main__":
    atheris.Setup(sys.argv, read_requests)
    atheris.Fuzz()
