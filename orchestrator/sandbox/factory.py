"""Sandboxes in Docker containers: the parts of this folder put together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.errors import SandboxLost, SandboxUnavailable
from orchestrator.sandbox.engine import Engine, EngineInfo
from orchestrator.sandbox.engine_docker import DockerEngine
from orchestrator.sandbox.host_paths import HostPath
from orchestrator.sandbox.launcher import Launcher, LiveSandbox
from orchestrator.sandbox.policy import ENGINE_DEFAULT, Policy, load_policy
from orchestrator.sandbox.pool import WarmPool
from orchestrator.sandbox.reaper import Reaper, standing_by
from orchestrator.sandbox.reclaim import Reclaimed, reclaim, remove_owned, remove_owned_dirs
from orchestrator.sandbox.removals import Removals
from orchestrator.sandbox.self_check import Promised
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.sandbox.slots import Slots
from orchestrator.sandbox.state_dir import StateDir, open_state_dir, owner_record
from orchestrator.seams import Answer, Sandbox
from orchestrator.tasks import TaskSet
from orchestrator.values import Context

logger = logging.getLogger(__name__)

_ATTEMPTS = 3


class DockerSandboxes:
    """A `SandboxFactory` of the runtime in the settings, and by `of` of others. Made by `start`, for one event loop."""

    def __init__(
        self,
        engine: Engine,
        state: StateDir,
        owner: str,
        launcher: Launcher,
        settings: SandboxSettings,
        policy: Policy,
        reaper: Reaper,
    ) -> None:
        self._engine = engine
        self._reaper = reaper
        self._state = state
        self._owner = owner
        self._launcher = launcher
        self._settings = settings
        self._slots = Slots(settings.capacity)
        self._removals = Removals(launcher, settings.removal_delay_s, max(4, settings.capacity // 4))
        self._policy = policy
        self._info: EngineInfo | None = None
        # By runtime, each begun when it is first asked for; room and names are shared by all.
        self._pools: dict[str, WarmPool] = {}
        self._usual = self._of(policy.runtime.value, settings.pool_min)
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
            reaper = await stack.enter_async_context(standing_by(state, owner))
            launcher = Launcher(engine, state, owner, image_id, settings)
            self = cls(engine, state, owner, launcher, settings, limits, reaper)
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
        return sum(pool.idle for pool in self._pools.values())

    def warm_up(self, count: int) -> None:
        """See `SandboxesOfRuntime.warm_up`."""
        self._usual.warm_up(count)

    def of(self, runtime: str | None) -> SandboxesOfRuntime:
        """Sandboxes of this runtime; None is the one in the settings. What the engine does not know, it refuses."""
        return self._usual if runtime is None else self._of(runtime, 0)

    def open(
        self, context: Context | None, answer: Answer | None, *, height: int = 0
    ) -> AbstractAsyncContextManager[Sandbox]:
        """See `SandboxFactory.open`."""
        return self._usual.open(context, answer, height=height)

    async def promised(self) -> Promised:
        """See `SandboxesOfRuntime.promised`."""
        return await self._usual.promised()

    def _of(self, runtime: str, least: int) -> SandboxesOfRuntime:
        chosen = None if runtime == ENGINE_DEFAULT else runtime
        policy = self._policy.with_limits(runtime=chosen)
        if runtime not in self._pools:

            async def start(ahead: bool) -> LiveSandbox:
                return await self._launcher.start(policy, warm=ahead)

            settings = self._settings
            self._pools[runtime] = WarmPool(
                start, self._removals.add, least, settings.pool_max, settings.refill_delay_s
            )
        return SandboxesOfRuntime(self, policy, self._pools[runtime])

    async def engine_info(self) -> EngineInfo:
        """What the engine said of itself when it was first asked. Raises `SandboxUnavailable`."""
        if self._info is None:
            self._info = await self._engine.info()
        return self._info

    @asynccontextmanager
    async def lend(
        self, pool: WarmPool, context: Context | None, answer: Answer | None, height: int
    ) -> AsyncIterator[Sandbox]:
        """One of this pool, when there is room among all."""
        async with self._slots.acquire(height, self._settings.queue_timeout_s):
            sandbox = await self._ready(pool, context, answer)
            try:
                yield sandbox
            finally:
                at_rest = sandbox.session.retire()
                self._removals.add(sandbox, at_rest=at_rest)

    async def _ready(self, pool: WarmPool, context: Context | None, answer: Answer | None) -> LiveSandbox:
        for attempt in range(1, _ATTEMPTS + 1):
            sandbox = await pool.take()
            try:
                async with asyncio.timeout(self._settings.start_timeout_s):
                    await sandbox.give_work(context, answer)
            except (SandboxLost, TimeoutError) as error:
                # It was fine when it was taken: no reason to fail a run while another can be had.
                self._removals.add(sandbox)
                logger.info("%s did not take its work (attempt %d): %s", sandbox.name, attempt, error)
            except BaseException:
                self._removals.add(sandbox)
                raise
            else:
                return sandbox
        raise SandboxUnavailable(
            f"{_ATTEMPTS} sandboxes in a row were lost before their first cell.", "See: rlm doctor"
        )

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
        for pool in self._pools.values():
            await pool.close()
        await self._removals.close()
        try:
            if strays := await remove_owned(self._engine, self._state, self._owner):
                logger.warning("containers that were left at the end were removed: %s", ", ".join(strays))
        except SandboxUnavailable as error:
            # The record stays, so that the next start finds them; the reaper goes on trying meanwhile.
            logger.warning("containers may be left: %s", error)
            return
        await asyncio.to_thread(remove_owned_dirs, self._state, self._owner)
        self._state.forget_owner(self._owner)
        await self._reaper.dismiss()


@dataclass(frozen=True, slots=True)
class SandboxesOfRuntime:
    """A `SandboxFactory` of one runtime, beside others of the same process. Made by `DockerSandboxes.of`."""

    sandboxes: DockerSandboxes
    policy: Policy
    pool: WarmPool

    def warm_up(self, count: int) -> None:
        """Begins to start this many sandboxes, before the first need of them; returns at once."""
        self.pool.expect(count)

    def open(
        self, context: Context | None, answer: Answer | None, *, height: int = 0
    ) -> AbstractAsyncContextManager[Sandbox]:
        """See `SandboxFactory.open`."""
        return self.sandboxes.lend(self.pool, context, answer, height)

    async def promised(self) -> Promised:
        """What its sandboxes are to hold. Raises `SandboxUnavailable`, also for a runtime that the engine lacks."""
        info = await self.sandboxes.engine_info()
        runtime = self.policy.runtime.value
        if runtime == ENGINE_DEFAULT:
            runtime = info.default_runtime
        elif runtime not in info.runtimes:
            raise SandboxUnavailable(
                f"the engine knows no runtime {runtime!r} (it knows: {', '.join(info.runtimes)}).",
                "Install that runtime and register it with the engine (gVisor: make gvisor), or choose another.",
            )
        return Promised(self.policy, runtime in info.runtime_arguments, info.maps_users)


def _host_path(settings: SandboxSettings) -> HostPath | None:
    if settings.engine_state_dir is None:
        return None
    return HostPath(PurePosixPath(os.path.realpath(settings.state_dir)), PurePosixPath(settings.engine_state_dir))
