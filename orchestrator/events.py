"""What happened, in the past tense: the one source that every viewer, journal, total and trace reads.

Each event belongs to a `Span`, a node of the call tree, which is passed along as an argument: a gRPC handler does not
inherit a run's context variables. Spans nest as::

    run > rlm (depth 0) > iteration > model                     the RLM's own question to its model
                        > iteration > cell > batch > query > model            a leaf's answer
                                                   > query > rlm (depth 1) > iteration > ...

Every span is opened by an event whose name ends in `Started` and closed by the one that ends in `Ended`, in a
`finally`, whatever happens between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from orchestrator.values import (
    CellResult,
    ContextInfo,
    Ending,
    FailureReason,
    FinishReason,
    Limits,
    Message,
    OutputStream,
    Spent,
    Usage,
)

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a span ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


class _Event(msgspec.Struct, frozen=True, tag=True):
    """The base of the union; `tag` puts the class name into the JSON form as "type"."""


# --- run and RLM -------------------------------------------------------------------------------------------------


class RunStarted(_Event, frozen=True):
    run_id: str
    query: str
    context: ContextInfo | None
    max_depth: int
    models: tuple[str, ...]  # by depth, from the root's to the leaves'
    limits: Limits
    version: str  # of this package


class RunEnded(_Event, frozen=True):
    outcome: Outcome
    answer: str | None
    ending: Ending | None
    spent: Spent
    seconds: float
    error: str = ""


class RlmStarted(_Event, frozen=True):
    """An RLM has got its prompt. With the replies and cells that follow, this is all that its decisions depend on."""

    query: str
    context: ContextInfo | None
    depth: int
    max_depth: int
    max_iterations: int
    model: str


class RlmEnded(_Event, frozen=True):
    outcome: Outcome
    answer: str | None
    ending: Ending | None
    error: str = ""


class IterationStarted(_Event, frozen=True):
    number: int  # from 1
    of: int
    last_resort: bool = False  # out of iterations or of time: the one plain question for the best answer so far


class IterationEnded(_Event, frozen=True):
    outcome: Outcome


class TimeRanShort(_Event, frozen=True):
    """Too little of `max_seconds` is left for another iteration: what comes is the question for the best answer."""

    seconds_left: float  # until the RLM is stopped without an answer


# --- model calls -------------------------------------------------------------------------------------------------


class ModelCallStarted(_Event, frozen=True):
    model: str
    messages: tuple[Message, ...]


class ModelTextStreamed(_Event, frozen=True):
    """A piece of the root model's reply, as it came."""

    text: str


class ModelRetried(_Event, frozen=True):
    attempt: int  # the one that failed, from 1
    wait_s: float
    reason: str


class ModelCallEnded(_Event, frozen=True):
    outcome: Outcome
    text: str | None
    finish_reason: FinishReason | None
    usage: Usage | None  # all that it used, tries that nobody heard the answer of included; None: nothing
    cost_usd: float | None  # of `usage`; None: unknown
    cached: bool
    model: str
    seconds: float
    error: str = ""
    estimated: bool = False  # `usage` is our estimate or holds one: the API did not say, or the call was cut off
    requested: bool = True  # API requests were made; not so for a call that the budget refused


# --- sandboxes and cells -----------------------------------------------------------------------------------------


class SandboxStarted(_Event, frozen=True):
    """An RLM asked for its sandbox and has it now."""

    name: str
    seconds: float  # from asking to having
    warm: bool  # taken from the pool


class SandboxEnded(_Event, frozen=True):
    name: str
    outcome: Outcome
    error: str = ""


class CellStarted(_Event, frozen=True):
    code: str


class CellPrinted(_Event, frozen=True):
    stream: OutputStream
    offset: int
    text: str


class CellEnded(_Event, frozen=True):
    """`result` is None when the sandbox was lost or the caller stopped; `error` says so."""

    outcome: Outcome
    result: CellResult | None
    error: str = ""


class BatchStarted(_Event, frozen=True):
    size: int
    distinct: int  # after duplicates are folded
    max_concurrent: int


class BatchEnded(_Event, frozen=True):
    outcome: Outcome
    failed: int
    unasked: int = 0  # distinct ones that were not asked any more, since the budget had refused one for good


class SubCallChoice(StrEnum):
    """Why a sub-call is plain or recursive."""

    DEPTH = "depth"  # the depth alone: there was no choice, or nobody made one
    CODE = "code"  # the code asked for it so
    SIZE = "size"  # adaptive depth


class QueryStarted(_Event, frozen=True):
    index: int  # its place in the batch
    prompt: str  # of a long one the head and the tail, and its length
    recursive: bool
    choice: SubCallChoice = SubCallChoice.DEPTH


class QueryEnded(_Event, frozen=True):
    outcome: Outcome
    text: str | None
    failure: FailureReason | None = None
    error: str = ""


# --- housekeeping ------------------------------------------------------------------------------------------------


class NoticeGiven(_Event, frozen=True):
    """Something a person should know: a cleanup, a weaker setting, a slow start."""

    text: str


Event = (
    RunStarted
    | RunEnded
    | RlmStarted
    | RlmEnded
    | IterationStarted
    | IterationEnded
    | TimeRanShort
    | ModelCallStarted
    | ModelTextStreamed
    | ModelRetried
    | ModelCallEnded
    | SandboxStarted
    | SandboxEnded
    | CellStarted
    | CellPrinted
    | CellEnded
    | BatchStarted
    | BatchEnded
    | QueryStarted
    | QueryEnded
    | NoticeGiven
)


class SpanKind(StrEnum):
    RUN = "run"
    RLM = "rlm"
    ITERATION = "iteration"
    MODEL = "model"
    SANDBOX = "sandbox"
    CELL = "cell"
    BATCH = "batch"
    QUERY = "query"


class Record(msgspec.Struct, frozen=True):
    """An event with its place: in time, in the tree, in the order of all events of its run."""

    seq: int  # from 1, without gaps
    at: float  # seconds since the epoch
    span_id: int
    parent_id: int | None  # of the span; None for the run itself
    kind: SpanKind
    depth: int
    event: Event


Sink = Callable[[Record], None]


class EventLog:
    """The events of one run, in order. Sinks are called at once, in the loop's thread; they must not block."""

    def __init__(self, *sinks: Sink, clock: Callable[[], float] = time.time) -> None:
        self._sinks = list(sinks)
        self._clock = clock
        self._seq = 0
        self._spans = 0

    def subscribe(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def root(self) -> Span:
        return self._new_span(SpanKind.RUN, None, 0)

    def _new_span(self, kind: SpanKind, parent: Span | None, depth: int) -> Span:
        self._spans += 1
        return Span(self, self._spans, parent.id if parent else None, kind, depth)

    def _emit(self, span: Span, event: Event) -> None:
        self._seq += 1
        record = Record(self._seq, self._clock(), span.id, span.parent_id, span.kind, span.depth, event)
        for sink in tuple(self._sinks):
            try:
                sink(record)
            except (Exception, SystemExit):
                # One viewer's fault must not touch the run or the other viewers.
                self._sinks.remove(sink)
                logger.exception("an event sink raised and is dropped")


@dataclass(frozen=True, slots=True)
class Span:
    """A node of the call tree, and the pen to write its events with. `emit` never awaits and never raises."""

    log: EventLog = field(repr=False)
    id: int
    parent_id: int | None
    kind: SpanKind
    depth: int

    def child(self, kind: SpanKind, *, depth: int | None = None) -> Span:
        return self.log._new_span(kind, self, self.depth if depth is None else depth)

    def emit(self, event: Event) -> None:
        self.log._emit(self, event)
