"""What callers see of what a service holds: said by the store and the desks, carried by the wire, read by clients.

Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from orchestrator.config import RunSettings
from orchestrator.values import ContextInfo, Ending, Spent

T = TypeVar("T")


class RunState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # it has an answer; `ending` says of what kind
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # the server went down while it ran


class RunProblem(msgspec.Struct, frozen=True):
    """Why a run has no answer. `reason` is a machine-readable word such as "MODEL_FAILED" or "BUDGET_EXCEEDED".

    `metadata` is what its exception is made of, as text: `wire.statuses` makes it, and the exception again.
    """

    reason: str
    message: str
    metadata: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next_token` is empty on the last page."""

    items: tuple[T, ...]
    next_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it is now. `spent` and `last_seq` grow while it runs."""

    run_id: str
    principal: str
    request_id: str
    state: RunState
    query: str
    context: ContextInfo | None
    settings: RunSettings  # as they came to be, defaults filled in
    session_id: str | None
    labels: Mapping[str, str]
    started_at: float
    ended_at: float | None
    answer: str | None
    ending: Ending | None
    problem: RunProblem | None
    spent: Spent
    spent_by_model: Mapping[str, Spent]
    spent_by_depth: Mapping[int, Spent]
    last_seq: int


@dataclass(frozen=True, slots=True)
class Missed:
    """Records that a watcher was too slow for, both ends included; another watch gets them, but for streamed pieces."""

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextView:
    context_id: str
    info: ContextInfo
    uploaded_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """`run_id` is its last run's; `expires_at` None while it is busy."""

    session_id: str
    run_id: str
    busy: bool
    expires_at: float | None
    turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxView:
    sandbox_id: str
    busy: bool
    created_at: float
    expires_at: float | None  # None while it is busy
    cells: int
    spent: Spent
    labels: Mapping[str, str]
