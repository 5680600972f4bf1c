"""The Python client of a server: `RLM` and `Sandbox` as in `orchestrator`, and `Client`, the calls one by one.

::

    from orchestrator.client import RLM

    rlm = RLM(server="127.0.0.1:7443", model="gpt-5", recursive_model="gpt-5-mini")
    answer = rlm.completion(context=Path("big.txt"), query="Who is the murderer?")

The names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.client.calls import Client
    from orchestrator.client.library import RLM, Sandbox, close

_HOMES = {
    "RLM": "orchestrator.client.library",
    "Client": "orchestrator.client.calls",
    "Sandbox": "orchestrator.client.library",
    "close": "orchestrator.client.library",
}

__all__ = ["RLM", "Client", "Sandbox", "close"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orchestrator.client' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
