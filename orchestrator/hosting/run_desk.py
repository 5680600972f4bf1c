"""Runs that a service has in hand: they belong to the desk and never to a call, and go on when nobody watches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from orchestrator.build import Orchestrator
from orchestrator.config import RunSettings
from orchestrator.errors import Busy, InvalidInput, NotFound, RLMError
from orchestrator.events import Record, Sink
from orchestrator.hosting import run_views
from orchestrator.hosting.admission import Admission
from orchestrator.hosting.clock import Clock, LoopClock
from orchestrator.hosting.kept_sessions import KeptSessions
from orchestrator.hosting.live_runs import LiveRuns
from orchestrator.hosting.orders import ContextHeader, RunOrder, RunQuery
from orchestrator.hosting.premises import Premises, Room, SinksOf
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.settings import HostingSettings
from orchestrator.hosting.uploads import receive, receive_recording
from orchestrator.hosting.watching import followed, recorded
from orchestrator.store.asynchronous import StoreThreads
from orchestrator.store.database import Store
from orchestrator.store.rows import RunFilter
from orchestrator.tasks import TaskSet
from orchestrator.views import ContextView, Missed, Page, RunView, SessionView

logger = logging.getLogger(__name__)


def no_sinks(_: Mapping[str, str], _id: str) -> Sequence[Sink]:
    return ()


class RunDesk:
    """Made by `open`; belongs to its event loop. What a principal did not make is `NotFound` for it."""

    def __init__(self, premises: Premises) -> None:
        self.premises = premises
        self._store = premises.store
        self._call = premises.threads.call
        self._tasks = TaskSet()
        self._sessions = KeptSessions(premises, self._tasks)
        self._runs = LiveRuns(premises, self._tasks)
        self._admission = Admission(premises, self._runs, self._sessions, self._tasks)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        orchestrator: Orchestrator,
        store: Store,
        settings: HostingSettings,
        *,
        clock: Clock | None = None,
        sinks_of: SinksOf = no_sinks,
    ) -> AsyncIterator[RunDesk]:
        """Nothing is left after the block: runs are cancelled, sessions closed, all that was recorded is written.

        `sinks_of` gives further sinks for the events of a run or a kept sandbox, by its trace context and id.

        Raises `InvalidInput` when the settings do not fit the orchestrator's capacity.
        """
        capacity = orchestrator.config.capacity
        if settings.max_depth > capacity:
            raise InvalidInput(
                "capacity",
                f"must be at least the service's max_depth ({settings.max_depth}); it is {capacity}.",
                f"Set RLM_CAPACITY={settings.max_depth} or more.",
            )
        async with StoreThreads() as threads:
            room = Room(capacity - settings.max_depth)
            premises = Premises(orchestrator, store, threads, settings, clock or LoopClock(), room, sinks_of)
            desk = cls(premises)
            upkeep = asyncio.create_task(desk._upkeep(), name="retention")
            try:
                yield desk
            finally:
                upkeep.cancel()
                await asyncio.wait({upkeep})
                await desk.drain(0)
                await desk._tasks.close()

    @property
    def defaults(self) -> RunSettings:
        """What a run gets that chooses nothing."""
        return self._admission.defaults

    def settings_of(self, given: Mapping[str, object]) -> RunSettings:
        """The defaults with these changes, checked. Raises `InvalidInput` naming the setting."""
        return self._admission.settings_of(given)

    # --- runs ---

    async def start(self, order: RunOrder) -> RunView:
        """Returns as soon as the run is on record. With a request id that was used for an equal order, that run.

        Raises `InvalidInput`, `NotFound`, `Busy`, `RequestConflict`, `QuotaExceeded`, `TooLarge`, `StoreFailed`,
        `ShuttingDown`.
        """
        return await self._admission.start(order)

    async def watch(
        self, run_id: str, after_seq: int = 0, with_pieces: bool = True, *, principal: Principal
    ) -> AsyncIterator[Record | Missed]:
        """The recorded events after `after_seq`, then each as it happens, until the run's end.

        What a slow watcher is too late for becomes a `Missed`; another watch gets it. Raises `NotFound`, `StoreFailed`
        at the first step.
        """
        await self._runs.find(run_id, principal)
        live = self._runs.get(run_id)
        records: AsyncGenerator[Record | Missed, None] | AsyncGenerator[Record, None]
        if live is None:
            records = recorded(self.premises, run_id, after_seq)
        else:
            records = followed(self.premises, live, after_seq, with_pieces)
        async with aclosing(records):
            async for item in records:
                yield item

    async def get(self, run_id: str, *, principal: Principal) -> RunView:
        """Raises `NotFound`."""
        return run_views.view_of(await self._runs.find(run_id, principal))

    async def list(self, query: RunQuery, *, principal: Principal) -> Page[RunView]:
        """The newest first. Raises `InvalidInput` for a page size or token that cannot be."""
        wanted = RunFilter(
            principal=None if principal.admin else principal.name,
            states=query.states,
            session_id=query.session_id,
            started_after=query.started_after,
            started_before=query.started_before,
            labels=query.labels,
        )
        page = await self._call(self._store.list_runs, wanted, query.page_size, query.page_token)
        return Page(tuple(run_views.view_of(self._runs.as_it_is(run)) for run in page.items), page.next_token)

    async def cancel(self, run_id: str, *, principal: Principal) -> RunView:
        """Returns when its containers are gone; a run that has ended as it is. Raises `NotFound`."""
        await self._runs.find(run_id, principal)
        await self._runs.stop(run_id, f"it was cancelled by {principal.name}")
        return await self.get(run_id, principal=principal)

    async def delete(self, run_id: str, *, principal: Principal) -> None:
        """Raises `NotFound`; `Busy` while it runs."""
        run = await self._runs.find(run_id, principal)
        if self._runs.get(run_id) is not None:
            raise Busy(f"the run {run.run_id} is not over.", "Cancel it first.")
        await self._call(self._store.delete_run, run_id)

    async def import_run(self, chunks: AsyncIterator[bytes], *, principal: Principal) -> RunView:
        """Takes a recording in as a run of this principal.

        Raises `RunNotReplayable` (no recording), `InvalidInput` (the run is here already), `TooLarge`, `QuotaExceeded`,
        `StoreFailed`, `ShuttingDown`.
        """
        self.premises.check_open()
        return run_views.view_of(await receive_recording(self.premises, chunks, principal))

    # --- contexts ---

    async def upload(self, header: ContextHeader, chunks: AsyncIterator[bytes], *, principal: Principal) -> ContextView:
        """Raises `InvalidInput` (it is not what its header says), `TooLarge`, `QuotaExceeded`, `StoreFailed`."""
        self.premises.check_open()
        return run_views.context_view(await receive(self.premises, header, chunks, principal))

    async def contexts(self, page_size: int = 50, page_token: str = "", *, principal: Principal) -> Page[ContextView]:
        """The newest first. Raises `InvalidInput`."""
        owner = None if principal.admin else principal.name
        page = await self._call(self._store.list_contexts, owner, page_size, page_token)
        return Page(tuple(map(run_views.context_view, page.items)), page.next_token)

    async def delete_context(self, context_id: str, *, principal: Principal) -> None:
        """Raises `NotFound`; `Busy` while something uses it."""
        found = await self._call(self._store.find_context, context_id)
        if found is None or not principal.may_see(found.principal):
            raise NotFound("context", context_id)
        await self._call(self._store.delete_context, context_id)

    # --- sessions ---

    async def add_session_context(
        self, session_id: str, context_id: str, variable: str, *, principal: Principal
    ) -> None:
        """Raises `NotFound`, `Busy`, `SandboxLost`, `InvalidInput` for a name that is no identifier or is taken."""
        await self._sessions.add_context(session_id, context_id, variable, principal)

    def sessions(self, *, principal: Principal) -> tuple[SessionView, ...]:
        return self._sessions.list(principal)

    async def close_session(self, session_id: str, *, principal: Principal) -> None:
        """A run in it is cancelled; its sandbox is gone when this returns. Raises `NotFound`."""
        async with self._admission.between():  # a run that is about to begin in it has begun, and is stopped
            kept = self._sessions.find(session_id, principal)
            kept.closing = True  # and no other can
        await self._runs.stop(kept.run_id, "its session was closed")
        await asyncio.shield(self._tasks.spawn(self._sessions.close(kept, "it was closed"), f"{kept.id}: closing"))

    # --- the end ---

    async def drain(self, grace_s: float) -> None:
        """No new work from now on; waits for what runs, then cancels it and closes all sessions."""
        await self._admission.close()
        await self._runs.drain(grace_s)
        await self._sessions.close_all("the service was shut down")

    async def _upkeep(self) -> None:
        while True:
            try:
                await self._runs.save_ended()
                await self._call(self._store.retention, self.premises.settings.retention)
            except RLMError as error:
                logger.warning("what is kept could not be looked through: %s", error)
            await asyncio.sleep(self.premises.settings.retention_interval_s)
