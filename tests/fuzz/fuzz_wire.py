"""Coverage-guided fuzzing of what the host parses: `make fuzz` (needs atheris, the extra `fuzz`).

The host's own code is instrumented; protobuf's parser is C++ and is only driven.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orchestrator.sandbox"]):
    from tests.security.test_parsing_is_total import parsed

if __name__ == "__main__":
    atheris.Setup(sys.argv, parsed)
    atheris.Fuzz()
