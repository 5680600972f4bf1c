"""Logs of events and of modules, written by a thread of their own: a slow reader of stderr must not slow a run."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from orchestrator import events as ev
from orchestrator.telemetry.event_fields import Field, line
from orchestrator.telemetry.formats import FIELDS

EVENTS = "orchestrator.events"

_WAITING = 10_000  # lines; more than a burst of events, less than a memory problem
_CLOSE_S = 5.0

Ids = Callable[[int], tuple[str, str] | None]


class RunLog:
    """A sink that logs the records of one run at a time, each with its run, its span, and its place in a trace."""

    def __init__(self, *, content: bool = False, name: str | None = None) -> None:
        self._content = content
        self._name = name
        self._run_id = name
        self._logger = logging.getLogger(EVENTS)

    def __call__(self, record: ev.Record, trace_ids: tuple[str, str] | None = None) -> None:
        event = record.event
        match event:
            case ev.ModelTextStreamed() | ev.CellPrinted():
                return
            case ev.RunStarted(run_id=run_id):
                self._run_id = run_id
            case _:
                pass
        if not self._logger.isEnabledFor(logging.INFO):
            return
        found = line(event, content=self._content)
        if found is None or not self._logger.isEnabledFor(found.level):
            return
        fields: dict[str, Field] = {
            "event": type(event).__name__,
            "run_id": self._run_id,
            "span": record.span_id,
            "parent_span": record.parent_id,
            "depth": record.depth,
            "seq": record.seq,
        }
        if trace_ids is not None:
            fields["trace_id"], fields["span_id"] = trace_ids
        fields |= found.fields
        log = self._logger.makeRecord(EVENTS, found.level, "", 0, found.text, (), None, extra={FIELDS: fields})
        log.created = record.at
        self._logger.handle(log)
        if isinstance(event, ev.RunEnded):
            self._run_id = self._name


class LineWriter(logging.Handler):
    """Formats and writes in a thread. A line that finds no room is dropped, and `dropped` called."""

    def __init__(self, stream: TextIO, dropped: Callable[[], None], waiting: int = _WAITING) -> None:
        super().__init__()
        self._stream = stream
        self._dropped = dropped
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._write, name="rlm-logs", daemon=True)
        self._thread.start()

    def createLock(self) -> None:
        """The queue has its own."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Here and not in the thread: what the arguments refer to may change.
            record.msg, record.args = record.getMessage(), None
        except Exception:
            record.msg, record.args = f"{record.msg} {record.args!r}", None
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped()

    def close(self) -> None:
        """Writes what waits, but not for long: a reader that has stopped would hold the process forever."""
        try:
            self._queue.put(None, timeout=_CLOSE_S)
        except queue.Full:
            pass
        self._thread.join(_CLOSE_S)
        super().close()

    def _write(self) -> None:
        while (record := self._queue.get()) is not None:
            try:
                self._stream.write(self.format(record) + "\n")
                if self._queue.empty():
                    self._stream.flush()
            except Exception:  # the reader is gone, or the disk is full: nothing could be told of it here
                self._dropped()


@contextmanager
def logging_to(
    stream: TextIO, formatter: logging.Formatter, level: str, dropped: Callable[[], None]
) -> Iterator[LineWriter]:
    """All logging of the process goes to `stream` for the block; other libraries' from WARNING on."""
    root, ours = logging.getLogger(), logging.getLogger("orchestrator")
    before = (root.handlers[:], root.level, ours.handlers[:], ours.level, ours.propagate)
    writer = LineWriter(stream, dropped)
    writer.setFormatter(formatter)
    root.handlers, ours.handlers, ours.propagate = [writer], [], True
    root.setLevel(logging.WARNING)
    ours.setLevel(level.upper())
    try:
        yield writer
    finally:
        root.handlers, ours.handlers, ours.propagate = before[0], before[2], before[4]
        root.setLevel(before[1])
        ours.setLevel(before[3])
        writer.close()
