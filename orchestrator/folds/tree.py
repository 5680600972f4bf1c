"""The call tree as a person watches it: which RLM is at which iteration, doing what, and how far its batches are.

Rows are fewer than spans: iterations, cells, model calls and sandboxes are the *state* of the RLM they belong to, a
query that is answered by an RLM is that RLM's row, and a batch of one is its only query. Each event costs a constant
amount of work (and one addition per level above, for what was spent). Finished rows beyond `keep` are counted and
dropped, so that the finished part of a batch of 100,000 costs no more memory than that of a batch of ten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator import events as ev
from orchestrator.folds.printable import last_line, one_line
from orchestrator.folds.totals import spent_by
from orchestrator.values import CellStatus, Spent

_TAIL = 400  # characters of streamed text that are kept: enough for one terminal line


class Shape(StrEnum):
    RLM = "rlm"
    LEAF = "leaf"  # a query that one plain model call answers
    BATCH = "batch"


class State(StrEnum):
    WAITING = "waiting"  # for a sandbox, or for its turn
    THINKING = "thinking"  # a model call is under way
    RUNNING = "running"  # a cell is
    ASKING = "asking"  # a cell waits for answers
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


_OUTCOMES = {
    ev.Outcome.OK: State.DONE,
    ev.Outcome.FAILED: State.FAILED,
    ev.Outcome.CANCELLED: State.CANCELLED,
}


@dataclass(slots=True, eq=False)
class Row:
    shape: Shape
    depth: int
    title: str
    started: float  # seconds since the epoch
    span_id: int  # of the span that opened it: its key beneath its parent
    parent: Row | None = None
    state: State = State.WAITING
    ended: float | None = None
    iteration: int = 0
    iterations: int = 0
    last_resort: bool = False
    time_short: bool = False
    detail: str = ""  # a retry, an error
    spent: Spent = field(default_factory=Spent)  # with all rows beneath
    size: int = 0  # of a batch: how many questions are really asked
    counts: dict[State, int] = field(default_factory=dict)  # of rows beneath that ended, by how
    waiting: dict[int, Row] = field(default_factory=dict)  # by span id, in order of their start
    active: dict[int, Row] = field(default_factory=dict)
    finished: deque[Row] = field(default_factory=deque)
    _tail: str = ""

    @property
    def said(self) -> str:
        """The last line that its model streamed or its code printed."""
        return last_line(self._tail)

    @property
    def ended_beneath(self) -> int:
        return sum(self.counts.values())

    def seconds(self, now: float) -> float:
        return max(0.0, (now if self.ended is None else self.ended) - self.started)

    def hear(self, text: str) -> None:
        self._tail = (self._tail + text)[-_TAIL:]

    def hush(self) -> None:
        self._tail = ""

    def line_upward(self) -> Iterator[Row]:
        row: Row | None = self
        while row is not None:
            yield row
            row = row.parent


class CallTree:
    """Folds records into rows. `keep` is how many finished rows stay visible beneath each row."""

    def __init__(self, keep: int = 12) -> None:
        self.root: Row | None = None
        self.notices: deque[str] = deque(maxlen=20)
        self.run_id = ""
        self.max_depth = 0
        self.changes = 0  # grows with every event that could change what is seen
        self._keep = keep
        self._rows: dict[int, Row] = {}  # every open span, and the row that shows it

    def __call__(self, record: ev.Record) -> None:
        self.changes += 1
        event = record.event
        match event:
            case ev.RunStarted():
                self.run_id = event.run_id
                self.max_depth = event.max_depth
                self.root = Row(Shape.LEAF, 0, one_line(event.query), record.at, record.span_id)
                self._rows[record.span_id] = self.root
                return
            case ev.NoticeGiven(text=text):
                self.notices.append(one_line(text, 400))
                return
            case _:
                pass
        row = self._rows.get(record.span_id)
        if row is None:
            above = self._rows.get(record.parent_id) if record.parent_id is not None else None
            if above is None:
                return  # a journal that was cut at its start
            row = self._open(record, above)
            self._rows[record.span_id] = row
        else:
            self._advance(record, row)
        if type(event).__name__.endswith("Ended"):
            self._rows.pop(record.span_id, None)

    def _open(self, record: ev.Record, above: Row) -> Row:
        """The row of a span that is seen for the first time: the row above it, or a new one beneath."""
        match record.event:
            case ev.BatchStarted(size=size, distinct=distinct):
                above.state = State.ASKING
                above.hush()
                if size == 1:
                    return above
                title = f"batch of {size:,}" + (f" ({distinct:,} distinct)" if distinct != size else "")
                row = Row(Shape.BATCH, above.depth, title, record.at, record.span_id, above, State.ASKING)
                row.size = distinct
                above.active[row.span_id] = row
                return row
            case ev.QueryStarted(prompt=prompt, recursive=recursive):
                shape = Shape.RLM if recursive else Shape.LEAF
                row = Row(shape, above.depth + 1, one_line(prompt), record.at, record.span_id, above)
                above.waiting[row.span_id] = row
                return row
            case _:
                self._advance(record, above)
                return above

    def _advance(self, record: ev.Record, row: Row) -> None:
        event = record.event
        match event:
            case ev.RlmStarted():
                row.shape, row.depth, row.iterations = Shape.RLM, event.depth, event.max_iterations
                self._activate(row, State.WAITING)
                row.detail = "for a sandbox"
            case ev.SandboxStarted():
                row.detail = ""
                self._spend(row, Spent(sandboxes=1))
            case ev.IterationStarted():
                row.iteration, row.iterations, row.last_resort = event.number, event.of, event.last_resort
            case ev.TimeRanShort():
                row.time_short = True
            case ev.ModelCallStarted():
                self._activate(row, State.THINKING)
                row.detail = ""
                row.hush()
            case ev.ModelTextStreamed(text=text) | ev.CellPrinted(text=text):
                row.hear(text)
            case ev.ModelRetried():
                row.detail = f"retry {event.attempt} in {event.wait_s:.1f} s: {one_line(event.reason, 60)}"
                row.hush()
            case ev.ModelCallEnded():
                row.detail = one_line(event.error, 120)
                self._spend(row, spent_by(event))
            case ev.CellStarted():
                row.state = State.RUNNING
                row.detail = ""
                row.hush()
            case ev.CellEnded():
                if event.result is not None and event.result.status is not CellStatus.OK:
                    error = event.result.error
                    row.detail = one_line(f"{error.type_name}: {error.message}" if error else event.result.status, 120)
            case ev.BatchEnded():
                if row.shape is Shape.BATCH:
                    self._finish(record, row, event.outcome, "")
                owner = row.parent if row.shape is Shape.BATCH else row
                if owner is not None and not owner.state.ended:
                    owner.state = State.RUNNING
            case ev.RlmEnded() | ev.QueryEnded() | ev.RunEnded():
                if isinstance(event, ev.RlmEnded):
                    row.detail = one_line(event.error, 120)
                else:
                    self._finish(record, row, event.outcome, event.error)
                if isinstance(event, ev.RunEnded):
                    row.spent = event.spent  # the budget's own count knows of more: what was paid for and never heard
            case _:
                pass

    @staticmethod
    def _activate(row: Row, state: State) -> None:
        row.state = state
        above = row.parent
        if above is not None and row.span_id in above.waiting:
            del above.waiting[row.span_id]
            above.active[row.span_id] = row

    def _finish(self, record: ev.Record, row: Row, outcome: ev.Outcome, error: str) -> None:
        row.state, row.ended, row.detail = _OUTCOMES[outcome], record.at, one_line(error, 120)
        row.hush()
        above = row.parent
        if above is None:
            return
        if above.active.pop(row.span_id, None) is None:
            above.waiting.pop(row.span_id, None)
        above.counts[row.state] = above.counts.get(row.state, 0) + 1
        above.finished.append(row)
        if len(above.finished) > self._keep:
            above.finished.popleft()

    @staticmethod
    def _spend(row: Row, spent: Spent) -> None:
        for each in row.line_upward():
            each.spent += spent
