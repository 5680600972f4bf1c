"""A server in the place of an orchestrator of one's own: runs that are watched to their end, sandboxes for a block."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from orchestrator.client.calls import Client, stopped
from orchestrator.client.sandboxes import RemoteSandbox, open_sandbox
from orchestrator.config import Config
from orchestrator.errors import InvalidInput, RLMError
from orchestrator.events import RunEnded, Sink
from orchestrator.folds.totals import Totals
from orchestrator.values import RunResult
from orchestrator.views import RunState, RunView
from orchestrator.wire.settings import NAMES

logger = logging.getLogger(__name__)


class Remote:
    """What the command needs of an orchestrator, by a server. `settings` are those that were given, and no defaults.

    Raises `InvalidInput` for a setting that is not a run's own, or that breaks its rule.
    """

    cleaned: tuple[str, ...] = ()

    def __init__(self, client: Client, settings: Mapping[str, object], labels: Mapping[str, str] | None = None) -> None:
        self.client = client
        self._settings = run_settings(settings)
        self._labels = labels

    async def ask(self, query: str, context: object = None, *, sinks: Sequence[Sink] = ()) -> RunResult:
        """Starts a run and watches it to its end. Cancelling this cancels the run first, wherever it is.

        Raises what the run ended with.
        """
        starting = asyncio.ensure_future(
            self.client.start(query, context, settings=self._settings, labels=self._labels)
        )
        try:
            view = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # It may have arrived: only its answer tells which run is to be cancelled.
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                await self._cancel(starting.result().run_id)
            raise
        try:
            totals = Totals()
            seconds = await self._watch(view.run_id, totals, sinks)
            view = await self.client.get(view.run_id)
        except asyncio.CancelledError:
            await self._cancel(view.run_id)
            raise
        return replace(result_of(view, seconds), by_batch=tuple(totals.finished_batches))

    def sandbox(self, context: object = None) -> AbstractAsyncContextManager[RemoteSandbox]:
        return open_sandbox(self.client, context)

    async def _watch(self, run_id: str, totals: Totals, sinks: Sequence[Sink]) -> float | None:
        seconds: float | None = None
        alive: list[Sink] = [totals, *sinks]
        async for record in self.client.watch(run_id, with_pieces=bool(sinks)):
            for sink in tuple(alive):
                try:
                    sink(record)
                except Exception:
                    alive.remove(sink)  # as in `EventLog`
                    logger.exception("an event sink raised and is dropped")
            if isinstance(record.event, RunEnded):
                seconds = record.event.seconds
        return seconds

    async def _cancel(self, run_id: str) -> None:
        cancelling = asyncio.ensure_future(self.client.cancel(run_id))
        await asyncio.wait([cancelling])
        if isinstance(error := cancelling.exception(), RLMError):
            logger.warning("the run %s could not be cancelled: %s", run_id, error)


def run_settings(given: Mapping[str, object]) -> dict[str, Any]:
    """Those that are given, checked as the library checks them."""
    named = {name: value for name, value in given.items() if value is not None}
    if foreign := sorted(set(named) - NAMES):
        raise InvalidInput(foreign[0], "is not a setting of a run: on a server, it is the server's.", "Leave it out.")
    capacity = {"capacity": max(32, depth)} if isinstance(depth := named.get("max_depth"), int) else {}
    config = Config.load({**named, **capacity}, environ={}, dotenv=None)
    return {name: getattr(config, name) for name in named}


def result_of(view: RunView, seconds: float | None = None) -> RunResult:
    """Raises what the run ended with, if that is no answer."""
    if view.state is not RunState.SUCCEEDED or view.answer is None or view.ending is None:
        raise stopped(view)
    if seconds is None:
        seconds = (view.ended_at or view.started_at) - view.started_at
    return RunResult(
        view.run_id, view.answer, view.ending, view.spent, view.spent_by_model, view.spent_by_depth, seconds
    )
