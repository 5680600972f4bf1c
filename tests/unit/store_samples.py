"""Runs and records to keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import RLMError
from orchestrator.events import (
    Event,
    EventLog,
    ModelCallEnded,
    ModelTextStreamed,
    NoticeGiven,
    Outcome,
    Record,
    RunEnded,
    RunStarted,
)
from orchestrator.store.database import Store
from orchestrator.store.rows import StoredContext, StoredRun
from orchestrator.values import ContextInfo, ContextKind, Ending, FinishReason, Limits, Spent, Usage


def run(number: int = 1, **changes: Any) -> StoredRun:
    given: dict[str, Any] = {
        "run_id": f"run_{number}",
        "principal": "alice",
        "request_id": f"request-{number}",
        "order_hash": "00",
        "query": "What is it?",
        "started_at": float(number),
    }
    return StoredRun(**{**given, **changes})


def records(*events: Event) -> list[Record]:
    kept: list[Record] = []
    span = EventLog(kept.append, clock=lambda: 100.0 + len(kept)).root()
    for event in events:
        span.emit(event)
    return kept


def started(run_id: str = "run_1") -> RunStarted:
    return RunStarted(run_id, "What is it?", None, 1, ("m", "leaf"), Limits(), "0.1.0")


def called(tokens: int = 10, cost_usd: float | None = 0.5) -> ModelCallEnded:
    usage = Usage(input_tokens=tokens)
    return ModelCallEnded(Outcome.OK, "It is.", FinishReason.STOP, usage, cost_usd, False, "m", 1.0)


def ended(spent: Spent | None = None) -> RunEnded:
    return RunEnded(Outcome.OK, "42", Ending.FINAL, spent or Spent(calls=1), 1.0)


def piece(text: str = "It ") -> ModelTextStreamed:
    return ModelTextStreamed(text)


def notice(size: int = 10) -> NoticeGiven:
    return NoticeGiven("x" * size)


def upload(store: Store, text: str = "It is 42.", principal: str = "alice") -> StoredContext:
    data = text.encode()
    writing = store.new_upload()
    writing.write(data)
    writing.seal()
    info = ContextInfo(ContextKind.TEXT, "str", len(data), len(text), "characters", text[:100], "")
    return store.keep_context(writing, principal, info)


def files_of(path: Path) -> Sequence[str]:
    return sorted(entry.name for entry in path.with_name(f"{path.name}.contexts").iterdir())


def kind_of(error: RLMError) -> str:
    return str(getattr(error, "kind", ""))
