"""What tests, demos and benchmarks can use in place of a live service.

The containers need the "testing" extra, and are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.testing.containers import OrchestratorContainer, ScriptedModelContainer

__all__ = ["OrchestratorContainer", "ScriptedModelContainer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'orchestrator.testing' has no attribute {name!r}")
    from orchestrator.testing import containers

    return getattr(containers, name)
