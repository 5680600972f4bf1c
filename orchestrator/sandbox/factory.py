"""Sandboxes in Docker containers: the parts of this folder put together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import PurePosixPath

from orchestrator.errors import LossCause, SandboxLost, SandboxUnavailable
from orchestrator.sandbox import reaper
from orchestrator.sandbox.engine import Engine
from orchestrator.sandbox.engine_docker import DockerEngine
from orchestrator.sandbox.host_paths import HostPath
from orchestrator.sandbox.launcher import Launcher, LiveSandbox
from orchestrator.sandbox.policy import Policy, load_policy
from orchestrator.sandbox.pool import WarmPool
from orchestrator.sandbox.reclaim import Reclaimed, reclaim, remove_owned, remove_owned_dirs
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.sandbox.slots import Slots
from orchestrator.sandbox.state_dir import StateDir, open_state_dir, owner_record
from orchestrator.seams import Answer, Sandbox
from orchestrator.tasks import TaskSet
from orchestrator.values import Context

logger = logging.getLogger(__name__)

_DESTROYS_AT_A_TIME = 4
_DRAIN_S = 60.0
_ATTEMPTS = 3


class DockerSandboxes:
    """A `SandboxFactory`. Made by `start`, for one event loop."""

    def __init__(
        self, engine: Engine, state: StateDir, owner: str, launcher: Launcher, settings: SandboxSettings
    ) -> None:
        self._engine = engine
        self._state = state
        self._owner = owner
        self._launcher = launcher
        self._settings = settings
        self._slots = Slots(settings.capacity)
        self._destroying = TaskSet()
        self._destroys = asyncio.Semaphore(_DESTROYS_AT_A_TIME)
        self._pool = WarmPool(self._start, self._discard, settings.pool_min, settings.pool_max, settings.refill_delay_s)
        self.reclaimed = Reclaimed()
        # On the file system of the sandboxes' own directories, so that a context can be linked into them.
        self.context_dir = state.make_context_dir(owner)

    @classmethod
    @asynccontextmanager
    async def start(
        cls, settings: SandboxSettings, *, engine: Engine | None = None, policy: Policy | None = None
    ) -> AsyncIterator[DockerSandboxes]:
        """Checks engine and image, cleans up after dead processes, and holds everything for the block.

        `.reclaimed` tells what was cleaned up. On exit all containers are gone when this returns.

        Raises `SandboxUnavailable` (no engine, no image) and `InvalidInput` (state directory, limits).
        """
        limits = (policy or load_policy()).with_limits(
            memory_mib=settings.memory_mib,
            cpus=settings.cpus,
            pids=settings.pids,
            tmp_mib=settings.tmp_mib,
            runtime=settings.runtime,
        )
        async with AsyncExitStack() as stack:
            if engine is None:
                engine = DockerEngine(host_path=_host_path(settings))
                stack.push_async_callback(engine.close)
            image_id = await engine.resolve_image(settings.image)
            state = await asyncio.to_thread(open_state_dir, settings.state_dir)
            owner = stack.enter_context(owner_record(state))
            await stack.enter_async_context(reaper.standing_by(state, owner))
            launcher = Launcher(engine, state, owner, limits, image_id, settings)
            self = cls(engine, state, owner, launcher, settings)
            stack.push_async_callback(self._close)
            sweep = TaskSet()
            stack.push_async_callback(sweep.close)
            self.reclaimed = await reclaim(engine, state)
            sweep.spawn(self._sweep(), "sweeping left-over containers")
            yield self

    @property
    def in_use(self) -> int:
        return self._slots.held

    @property
    def idle(self) -> int:
        return self._pool.idle

    def warm_up(self, count: int) -> None:
        """Begins to start this many sandboxes, before the first need of them; returns at once."""
        self._pool.expect(count)

    @asynccontextmanager
    async def open(self, context: Context | None, answer: Answer | None, *, height: int = 0) -> AsyncIterator[Sandbox]:
        """See `SandboxFactory.open`."""
        async with self._slots.acquire(height, self._settings.queue_timeout_s):
            sandbox = await self._ready(context, answer)
            try:
                yield sandbox
            finally:
                sandbox.session.lose(LossCause.CLOSED, "")
                self._discard(sandbox)

    async def _ready(self, context: Context | None, answer: Answer | None) -> LiveSandbox:
        for attempt in range(1, _ATTEMPTS + 1):
            sandbox = await self._pool.take()
            try:
                async with asyncio.timeout(self._settings.start_timeout_s):
                    await sandbox.give_work(context, answer)
            except (SandboxLost, TimeoutError) as error:
                # It was fine when it was taken: no reason to fail a run while another can be had.
                self._discard(sandbox)
                logger.info("%s did not take its work (attempt %d): %s", sandbox.name, attempt, error)
            except BaseException:
                self._discard(sandbox)
                raise
            else:
                return sandbox
        raise SandboxUnavailable(
            f"{_ATTEMPTS} sandboxes in a row were lost before their first cell.", "See: rlm doctor"
        )

    async def _start(self, ahead: bool) -> LiveSandbox:
        return await self._launcher.start(warm=ahead)

    def _discard(self, sandbox: LiveSandbox) -> None:
        self._destroying.spawn(self._destroy(sandbox), f"destroying {sandbox.name}")

    async def _destroy(self, sandbox: LiveSandbox) -> None:
        async with self._destroys:
            await self._launcher.destroy(sandbox)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval_s)
            try:
                found = await reclaim(self._engine, self._state)
                # Names are known from before their creation until after their removal: the rest are failed removals.
                strays = await remove_owned(self._engine, self._state, self._owner, self._launcher.knows)
            except SandboxUnavailable as error:
                logger.warning("left-over containers could not be looked for: %s", error)
                continue
            if found or strays:
                logger.warning("the sweep removed: %s %s", found, ", ".join(strays))

    async def _close(self) -> None:
        await self._pool.close()
        await self._destroying.drain(_DRAIN_S)
        await self._destroying.close()
        try:
            if strays := await remove_owned(self._engine, self._state, self._owner):
                logger.warning("containers that were left at the end were removed: %s", ", ".join(strays))
        except SandboxUnavailable as error:
            # The record stays, so that the next start finds them.
            logger.warning("containers may be left: %s", error)
            return
        await asyncio.to_thread(remove_owned_dirs, self._state, self._owner)
        self._state.forget_owner(self._owner)


def _host_path(settings: SandboxSettings) -> HostPath | None:
    if settings.engine_state_dir is None:
        return None
    return HostPath(PurePosixPath(os.path.realpath(settings.state_dir)), PurePosixPath(settings.engine_state_dir))
