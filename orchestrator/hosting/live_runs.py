"""The runs that go on: begun, seen through to their end, stopped, and put on record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from orchestrator.budget import Share
from orchestrator.build import RunResult
from orchestrator.config import RunSettings
from orchestrator.errors import NotFound, RLMError, StoreFailed
from orchestrator.events import Sink
from orchestrator.hosting import run_views
from orchestrator.hosting.kept_sessions import KeptSession
from orchestrator.hosting.premises import Premises
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.recording import Recording
from orchestrator.store.rows import StoredRun
from orchestrator.tasks import TaskSet
from orchestrator.values import Context
from orchestrator.views import RunState

logger = logging.getLogger(__name__)
_CANCEL_S = 60.0  # for the containers of cancelled runs to be removed


@dataclass(slots=True, eq=False)
class LiveRun:
    """A run that goes on. `stack` holds what it uses: its context, its place in a session."""

    run: StoredRun
    recording: Recording
    stack: AsyncExitStack
    context: Context | None
    session: KeptSession | None
    settings: RunSettings
    share: Share
    work: asyncio.Task[RunResult] | None = None  # what a cancellation stops
    task: asyncio.Task[None] | None = None  # what sees it to its end, whatever comes
    stopped_for: str = "it was cancelled"

    def now(self) -> StoredRun:
        return run_views.so_far(self.run, self.recording) if self.run.state is RunState.RUNNING else self.run


class LiveRuns:
    """All of a service's, with those whose end is not on record yet."""

    def __init__(self, premises: Premises, tasks: TaskSet) -> None:
        self._premises = premises
        self._tasks = tasks
        self._runs: dict[str, LiveRun] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run_id: str) -> LiveRun | None:
        return self._runs.get(run_id)

    def count_of(self, principal: str) -> int:
        return sum(live.run.principal == principal for live in self._runs.values())

    async def find(self, run_id: str, principal: Principal) -> StoredRun:
        """A run as it is now, one that has ended too. Raises `NotFound`."""
        live = self._runs.get(run_id)
        if live is not None:
            run: StoredRun | None = live.now()
        else:
            run = await self._premises.threads.call(self._premises.store.find_run, run_id)
        if run is None or not principal.may_see(run.principal):
            raise NotFound("run", run_id)
        return run

    def as_it_is(self, run: StoredRun) -> StoredRun:
        """A row of the store, which is behind while the run goes on."""
        live = self._runs.get(run.run_id)
        return live.now() if live is not None else run

    def begin(self, live: LiveRun, sinks: Sequence[Sink]) -> None:
        """From here on, its stack is left when it ends."""
        run_id = live.run.run_id
        self._runs[run_id] = live
        if live.session is not None:
            live.session.run_id = run_id
            live.session.turns += 1
        asking = self._premises.orchestrator.ask(
            live.run.query,
            live.context,
            settings=live.settings,
            sinks=(live.recording, *sinks),
            run_id=run_id,
            session=live.session.run if live.session is not None else None,
            share=live.share,
        )
        live.work = self._tasks.spawn(asking, run_id)
        live.task = asyncio.create_task(self._see_through(live, live.work), name=f"{run_id}: to its end")

    async def stop(self, run_id: str, reason: str, *, wait: bool = True) -> None:
        """Cancels it; with `wait`, its containers are gone when this returns. None when it does not run."""
        live = self._runs.get(run_id)
        if live is None or live.work is None or live.task is None:
            return
        if not live.work.done() and not live.work.cancelling():
            live.stopped_for = reason
            live.work.cancel()
        if wait:
            await asyncio.wait({live.task})

    async def drain(self, grace_s: float) -> None:
        """Waits for what runs, then cancels it. No run may begin meanwhile."""
        running = [live.task for live in self._runs.values() if live.task is not None]
        if running and grace_s > 0:
            await asyncio.wait(running, timeout=grace_s)
        for run_id in tuple(self._runs):
            await self.stop(run_id, "the service was shut down", wait=False)
        if running:
            await asyncio.wait(running, timeout=_CANCEL_S)

    async def save_ended(self) -> None:
        """Tries again to put on record what could not be put there when it ended."""
        for live in tuple(self._runs.values()):
            if live.run.state is not RunState.RUNNING and await self._save(live):
                self._forget(live)

    async def _see_through(self, live: LiveRun, work: asyncio.Task[RunResult]) -> None:
        try:
            await self._ended(live, work)
        except Exception:
            logger.exception("the end of the run %s went wrong", live.run.run_id)
        finally:
            live.recording.end()  # whatever happens: nobody may wait for this run for ever

    async def _ended(self, live: LiveRun, work: asyncio.Task[RunResult]) -> None:
        run_id, now = live.run.run_id, self._premises.clock.now
        await asyncio.wait({work})
        try:
            ended = run_views.succeeded(live.now(), work.result(), now())
        except asyncio.CancelledError:
            ended = run_views.cancelled(live.now(), live.stopped_for, now())
        except RLMError as error:
            ended = run_views.failed(live.now(), error, now())
        except Exception:
            logger.exception("the run %s failed in an unforeseen way", run_id)
            ended = run_views.broken(live.now(), now())
        try:
            await live.stack.aclose()
        except Exception:
            logger.exception("the run %s could not be cleaned up after", run_id)
        live.recording.flush()
        live.run = ended
        if await self._save(live):
            self._forget(live)

    async def _save(self, live: LiveRun) -> bool:
        try:
            await self._premises.threads.call(self._premises.store.update_run, live.run)
        except StoreFailed as error:
            logger.error("the end of the run %s is not on record yet: %s", live.run.run_id, error)
            return False
        except NotFound:
            pass  # somebody has removed it from the database
        except Exception:
            logger.exception("the end of the run %s cannot be put on record", live.run.run_id)
            return False
        return True

    def _forget(self, live: LiveRun) -> None:
        self._runs.pop(live.run.run_id, None)
