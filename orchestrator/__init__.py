"""Runs Recursive Language Models: model-written code in containers without a network, calling back over gRPC.

The names below are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.build import Orchestrator, RunResult, open_orchestrator
    from orchestrator.config import Config
    from orchestrator.library import RLM, RLM_REPL, Sandbox, close
    from orchestrator.llm.async_client import AsyncOpenAIClient

_HOMES = {
    "RLM": "orchestrator.library",
    "RLM_REPL": "orchestrator.library",
    "Sandbox": "orchestrator.library",
    "close": "orchestrator.library",
    "AsyncOpenAIClient": "orchestrator.llm.async_client",
    "Config": "orchestrator.config",
    "Orchestrator": "orchestrator.build",
    "RunResult": "orchestrator.build",
    "open_orchestrator": "orchestrator.build",
}

__all__ = [
    "RLM",
    "RLM_REPL",
    "AsyncOpenAIClient",
    "Config",
    "Orchestrator",
    "RunResult",
    "Sandbox",
    "close",
    "open_orchestrator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
