"""What the store holds, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.values import ContextInfo, Ending, Spent
from orchestrator.views import RunProblem, RunState


class StoredRun(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a run beside its events. Times are seconds since the epoch."""

    run_id: str
    principal: str
    request_id: str = ""
    order_hash: str = ""  # of all that the request said; hex
    state: RunState = RunState.RUNNING
    query: str
    context: ContextInfo | None = None
    context_id: str | None = None  # of a stored context, which this run uses
    settings: dict[str, Any] = {}  # JSON-able; its meaning is the writer's
    session_id: str | None = None
    labels: dict[str, str] = {}
    started_at: float
    ended_at: float | None = None
    answer: str | None = None
    ending: Ending | None = None
    problem: RunProblem | None = None
    spent: Spent = Spent()
    spent_by_model: dict[str, Spent] = {}
    spent_by_depth: dict[int, Spent] = {}
    last_seq: int = 0


class StoredContext(msgspec.Struct, frozen=True, kw_only=True):
    """A context that was uploaded. The same content of the same principal is stored once."""

    context_id: str
    principal: str
    sha256: str  # hex
    info: ContextInfo
    uploaded_at: float
    path: Path  # of the file; never written to again


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs; all that is set must hold. `principal` None: everybody's."""

    principal: str | None
    states: frozenset[RunState] = frozenset()
    session_id: str | None = None
    started_after: float | None = None
    started_before: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionLimits:
    """What is kept of runs that have ended, and of contexts that no run uses. The oldest go first. None: no limit."""

    max_age_s: float | None = None
    max_runs: int | None = None
    max_bytes: int | None = None  # runs, events and contexts together


@dataclass(frozen=True, slots=True)
class Removed:
    """What a retention run has removed."""

    runs: int = 0
    contexts: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Total:
    """What a principal has used over all its runs that are kept, and over those that were deleted."""

    cost_usd: float = 0.0
    tokens: int = 0
