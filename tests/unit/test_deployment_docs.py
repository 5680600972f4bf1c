"""What docs/deployment.md says of the engine's API is what the code calls."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_calls_to_the_engine_are_listed() -> None:
    source = (ROOT / "orchestrator/sandbox/engine_docker.py").read_text()
    called = set(re.findall(r"\bapi\.([a-z_]+)\(", source))
    listed = set(
        re.findall(r"\n\| `(?:GET|POST|DELETE) [^`]+` \| `(\w+)` \|", (ROOT / "docs/deployment.md").read_text())
    )
    assert called
    assert called == listed


def test_nothing_else_calls_the_engine() -> None:
    door = "orchestrator/sandbox/engine_docker.py"
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "orchestrator").rglob("*.py")
        if re.search(r"^\s*(?:import|from) docker\b", path.read_text(), re.MULTILINE)
    }
    assert importers - {"orchestrator/testing/containers.py"} == {door}
