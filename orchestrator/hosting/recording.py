"""What happens to a run's events while it runs: they are counted, written in batches, and shown to who watches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from orchestrator.events import CellPrinted, ModelTextStreamed, Record
from orchestrator.folds.totals import Totals
from orchestrator.views import Missed

_FLUSH_S = 0.03  # with the store's own wait, less than the 100 ms that a killed server may lose


class Watcher:
    """The records that one watcher has not taken yet. Too many, and they become one `Missed`."""

    def __init__(self, limit: int, with_pieces: bool) -> None:
        self._limit = limit
        self._with_pieces = with_pieces
        self._queue: deque[Record] = deque()
        self._missed: Missed | None = None  # all of it older than the queue
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, record: Record) -> None:
        if not self._with_pieces and isinstance(record.event, ModelTextStreamed | CellPrinted):
            return
        if len(self._queue) >= self._limit:
            first = self._missed.first_seq if self._missed is not None else self._queue[0].seq
            self._missed = Missed(first, self._queue[-1].seq)
            self._queue.clear()
        self._queue.append(record)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def take_missed(self) -> Missed | None:
        missed, self._missed = self._missed, None
        return missed

    async def items(self) -> AsyncIterator[Record | Missed]:
        """Until the run has ended and all is taken."""
        while True:
            if (missed := self.take_missed()) is not None:
                yield missed
            elif self._queue:
                yield self._queue.popleft()
            elif self._ended:
                return
            else:
                self._changed.clear()
                await self._changed.wait()


class Recording:
    """The sink of one run. `save` takes a batch at once and must not block."""

    def __init__(self, save: Callable[[list[Record]], None]) -> None:
        self._save = save
        self._unsaved: list[Record] = []
        self._flush_at: asyncio.TimerHandle | None = None
        self._watchers: set[Watcher] = set()
        self._ended = False
        self.totals = Totals(batches_kept=1)
        self.last_seq = 0

    def __call__(self, record: Record) -> None:
        self.last_seq = record.seq
        self.totals(record)
        self._unsaved.append(record)
        if self._flush_at is None:
            self._flush_at = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
        for watcher in self._watchers:
            watcher.put(record)

    def flush(self) -> None:
        """Hands over what is not saved yet."""
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        if self._unsaved:
            unsaved, self._unsaved = self._unsaved, []
            self._save(unsaved)

    def watch(self, limit: int, with_pieces: bool) -> Watcher:
        """Sees what comes from now on."""
        watcher = Watcher(limit, with_pieces)
        if self._ended:
            watcher.end()
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def end(self) -> None:
        """Nothing more comes."""
        self.flush()
        self._ended = True
        for watcher in self._watchers:
            watcher.end()
