"""Progress for a stderr that is not a terminal: a few plain lines that a log can hold."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator import events as ev
from orchestrator.cli import figures
from orchestrator.folds.printable import one_line
from orchestrator.folds.totals import Totals

_STEP = 0.1  # of a batch, between two lines on it


class ProgressLines:
    """A sink: the root's iterations and batches, and no more than a line for each tenth of a batch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._started: float | None = None
        self._totals = Totals(batches_kept=1)
        self._batches: dict[int, _Batch] = {}

    def __call__(self, record: ev.Record) -> None:
        self._totals(record)
        if self._started is None:
            self._started = record.at
        match record.event:
            case ev.IterationStarted(number=number, of=of, last_resort=last) if record.depth == 0:
                self._line(
                    record, "out of iterations: asking for the best answer" if last else f"iteration {number}/{of}"
                )
            case ev.BatchStarted(size=size, distinct=distinct) if record.depth == 0 and size > 1:
                self._batches[record.span_id] = _Batch(distinct)
                self._line(record, f"batch of {size:,}")
            case ev.QueryEnded(outcome=ev.Outcome.CANCELLED):
                pass  # everything stops: no progress, and no failure either
            case ev.QueryEnded(outcome=outcome) if record.parent_id in self._batches:
                batch = self._batches[record.parent_id]
                if batch.ended(outcome is not ev.Outcome.OK):
                    failed = f", {batch.failed:,} failed" if batch.failed else ""
                    self._line(record, f"batch {batch.done:,}/{batch.size:,}{failed}")
            case ev.BatchEnded():
                self._batches.pop(record.span_id, None)
            case ev.ModelRetried(attempt=attempt, wait_s=wait_s, reason=reason) if record.depth == 0:
                self._line(record, f"model attempt {attempt} failed, next in {wait_s:.1f} s: {one_line(reason, 100)}")
            case ev.NoticeGiven(text=text):
                self._line(record, one_line(text, 400))
            case _:
                pass

    def _line(self, record: ev.Record, text: str) -> None:
        at = figures.clock(record.at - (self._started or record.at))
        spent = self._totals.tree
        so_far = (
            f" · {figures.tokens(spent.usage.total_tokens)} tokens · {figures.priced(spent)}" if spent.calls else ""
        )
        self._say(f"[{at}] {text}{so_far}")


class _Batch:
    def __init__(self, size: int) -> None:
        self.size = size
        self.done = 0
        self.failed = 0
        self._told = 0

    def ended(self, failed: bool) -> bool:
        """Whether this end is worth a line."""
        self.done += 1
        self.failed += failed
        step = self.done if self.done == self.size else int(self.done / max(1.0, self.size * _STEP))
        worth = step != self._told
        self._told = step
        return worth
