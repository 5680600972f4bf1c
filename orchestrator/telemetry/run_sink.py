"""One run's records, given to all that tell of runs; a fault of one touches neither the others nor the run."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator import events as ev
from orchestrator.errors import InvalidInput
from orchestrator.folds.redaction import Redact
from orchestrator.telemetry.logs import RunLog

logger = logging.getLogger(__name__)


class RunSink:
    """For one run at a time: records do not say which run they are of, and spans are numbered anew in each.

    Raises `InvalidInput` when a second run begins before the first has ended, so that the second goes without it
    (an `EventLog` drops a sink that raises) instead of both being mixed up.
    """

    def __init__(
        self,
        *,
        metrics: ev.Sink | None = None,
        trace: ev.Sink | None = None,
        trace_ids: Callable[[int], tuple[str, str] | None] = lambda _span_id: None,
        log: RunLog | None = None,
        failed: Callable[[str], None] = lambda _consumer: None,
        redact: Redact = str,
    ) -> None:
        self._metrics = metrics
        self._trace = trace
        self._trace_ids = trace_ids
        self._log = log
        self._failed = failed
        self._redact = redact
        self._running = False
        self._told: set[str] = set()

    def __call__(self, record: ev.Record) -> None:
        match record.event:
            case ev.RunStarted() if self._running:
                raise InvalidInput(
                    "sinks",
                    "are told of a run while another one still goes on.",
                    "Give each run, or each RLM, sinks of its own: telemetry.sinks().",
                )
            case ev.RunStarted():
                self._running = True
            case ev.RunEnded():
                self._running = False
            case _:
                pass
        if self._metrics is not None:
            self._give("metrics", self._metrics, record)
        # A span that ends here is not open any more after it, one that begins not before it.
        ids = self._trace_ids(record.span_id)
        if self._trace is not None:
            self._give("traces", self._trace, record)
            ids = ids or self._trace_ids(record.span_id)
        if (log := self._log) is not None:
            self._give("logs", lambda each: log(each, ids), record)

    def _give(self, consumer: str, sink: ev.Sink, record: ev.Record) -> None:
        try:
            sink(record)
        except Exception as error:
            self._failed(consumer)
            if consumer not in self._told:
                self._told.add(consumer)
                logger.warning("%s failed on an event: %s", consumer, self._redact(repr(error)))
