"""What a run has used: in all, by model, by depth and by batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from orchestrator.events import (
    BatchEnded,
    BatchStarted,
    ModelCallEnded,
    Outcome,
    Record,
    SandboxStarted,
)
from orchestrator.values import BatchSpent, Spent, Usage


def spent_by(event: ModelCallEnded) -> Spent:
    """What one model call used. A call without a price counts as unpriced: its cost is unknown, not zero."""
    if event.cached:
        return Spent(cached_calls=1)
    calls = int(event.requested)
    return Spent(
        calls=calls,
        failed_calls=0 if event.outcome is Outcome.OK else calls,
        usage=event.usage or Usage(),
        cost_usd=event.cost_usd or 0.0,
        # A call that failed before it was answered has no usage, and nothing that a price could be asked for.
        unpriced_calls=1 if event.cost_usd is None and (event.outcome is Outcome.OK or event.usage) else 0,
        estimated_calls=int(event.estimated),
    )


@dataclass(slots=True)
class _OpenBatch:
    started: float
    size: int
    spent: Spent = field(default_factory=Spent)


@dataclass(slots=True)
class Totals:
    """Folds records into sums. `finished_batches` holds the latest `batches_kept` of them."""

    batches_kept: int = 1_000
    tree: Spent = field(default_factory=Spent)
    by_model: dict[str, Spent] = field(default_factory=dict)
    by_depth: dict[int, Spent] = field(default_factory=dict)
    finished_batches: deque[BatchSpent] = field(init=False)
    _open: dict[int, _OpenBatch] = field(default_factory=dict)
    _enclosing: dict[int, tuple[int, ...]] = field(default_factory=dict)  # span: the batches that it is in

    def __post_init__(self) -> None:
        self.finished_batches = deque(maxlen=self.batches_kept)

    def __call__(self, record: Record) -> None:
        span_id, event = record.span_id, record.event
        if span_id not in self._enclosing:
            parent = self._enclosing.get(record.parent_id, ()) if record.parent_id is not None else ()
            self._enclosing[span_id] = parent
        match event:
            case BatchStarted(size=size):
                self._open[span_id] = _OpenBatch(record.at, size)
                self._enclosing[span_id] = (*self._enclosing[span_id], span_id)
            case BatchEnded(failed=failed):
                if batch := self._open.pop(span_id, None):
                    self.finished_batches.append(
                        BatchSpent(record.depth, batch.size, failed, record.at - batch.started, batch.spent)
                    )
            case ModelCallEnded() if event.requested or event.cached:
                self._add(record, spent_by(event), event.model)
            case SandboxStarted():
                self._add(record, Spent(sandboxes=1), None)
            case _:
                pass
        if type(event).__name__.endswith("Ended"):
            self._enclosing.pop(span_id, None)

    def _add(self, record: Record, spent: Spent, model: str | None) -> None:
        self.tree += spent
        self.by_depth[record.depth] = self.by_depth.get(record.depth, Spent()) + spent
        if model is not None:
            self.by_model[model] = self.by_model.get(model, Spent()) + spent
        for batch_id in self._enclosing[record.span_id]:
            if batch := self._open.get(batch_id):
                batch.spent += spent
