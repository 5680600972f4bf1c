"""What callers ask a service for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.config import RunSettings
from orchestrator.hosting.principals import Principal
from orchestrator.values import Attachment, ContextKind, Limits
from orchestrator.views import RunState


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A context that was uploaded before."""

    context_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """A run to start. `request_id` empty: not idempotent. `settings` None: the service's defaults.

    `chosen` is what of the settings the caller has chosen: by this, and not by defaults that may change with a restart,
    an order is told from another. None: all of them.

    `context` is data (TEXT is UTF-8, JSON a document), or one that was uploaded; with `session_id`, none.
    `keep_session_s` 0: the root's sandbox goes with the run. It begins anew with each turn of the session.
    `trace_context` is the caller's (W3C `traceparent`, `tracestate`), for the run's trace to be a part of.
    """

    principal: Principal
    query: str
    request_id: str = ""
    context: Attachment | Uploaded | None = None
    settings: RunSettings | None = None
    chosen: Mapping[str, object] | None = None
    session_id: str | None = None
    keep_session_s: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    trace_context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs to list, the newest first."""

    page_size: int = 50
    page_token: str = ""
    states: frozenset[RunState] = frozenset()
    session_id: str | None = None
    started_after: float | None = None
    started_before: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContextHeader:
    """What an upload says of itself before its first byte. `sha256` has 32 bytes."""

    kind: ContextKind
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class SandboxModel:
    """A model for the code of a sandbox; `limits` hold for its whole life, `max_seconds` too. `max_sandboxes`: none."""

    model: str
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOrder:
    """A sandbox to keep. `request_id` empty: not idempotent. `model` None: no llm_query in it."""

    principal: Principal
    request_id: str = ""
    context: Attachment | Uploaded | None = None
    model: SandboxModel | None = None
    idle_timeout_s: float | None = None  # None: the service's default
    labels: Mapping[str, str] = field(default_factory=dict)
    trace_context: Mapping[str, str] = field(default_factory=dict)
