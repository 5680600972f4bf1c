"""A run's records, from any of them on: what is on record first, then each as it happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from orchestrator.events import Record
from orchestrator.hosting.live_runs import LiveRun
from orchestrator.hosting.premises import Premises
from orchestrator.views import Missed


async def recorded(
    premises: Premises, run_id: str, after_seq: int, upto: int | None = None
) -> AsyncGenerator[Record, None]:
    """Those of the store after `after_seq`, to `upto` when that is given."""
    while upto is None or after_seq < upto:
        records = await premises.threads.call(premises.store.records, run_id, after_seq)
        if not records:
            return
        for record in records:
            if upto is not None and record.seq > upto:
                return
            yield record
        after_seq = records[-1].seq


async def followed(
    premises: Premises, live: LiveRun, after_seq: int, with_pieces: bool
) -> AsyncGenerator[Record | Missed, None]:
    """Those of the store, and then what comes, to the run's end."""
    watcher = live.recording.watch(premises.settings.watcher_queue, with_pieces)
    try:
        position, upto = after_seq, live.recording.last_seq
        while True:  # what comes while the past is read may be too much as well: then that is the past too
            live.recording.flush()
            await premises.threads.call(premises.store.flush)
            async for record in recorded(premises, live.run.run_id, position, upto):
                position = record.seq
                yield record
            position = max(position, upto)
            if (missed := watcher.take_missed()) is None:
                break
            upto = missed.last_seq
        async for item in watcher.items():
            if isinstance(item, Missed):
                if item.last_seq > position:
                    yield Missed(max(item.first_seq, position + 1), item.last_seq)
            elif item.seq > position:
                yield item
    finally:
        live.recording.unwatch(watcher)
