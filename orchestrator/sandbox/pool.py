"""Sandboxes made ahead of need, each used once."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.launcher import LiveSandbox
from orchestrator.tasks import TaskSet

logger = logging.getLogger(__name__)

_DEMAND_WINDOW_S = 60.0
_RETRY_S = 5.0


class WarmPool:
    """Keeps between `least` and `most` idle sandboxes: as many as were taken in the last minute, less one.

    A program that needs a single sandbox so never pays for a spare one that nobody takes. `most` 0 is no pool: each
    sandbox is started when it is asked for.
    """

    def __init__(
        self,
        start: Callable[[bool], Awaitable[LiveSandbox]],
        discard: Callable[[LiveSandbox], None],
        least: int,
        most: int,
        refill_delay_s: float,
    ) -> None:
        self._start = start  # its argument: whether the sandbox is started ahead of need
        self._discard = discard
        self._least = least
        self._most = max(least, most)
        self._idle: deque[LiveSandbox] = deque()
        self._starting: set[asyncio.Task[LiveSandbox]] = set()
        self._taken: deque[float] = deque()
        self._tasks = TaskSet()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._retry: asyncio.TimerHandle | None = None
        self._shrink: asyncio.TimerHandle | None = None
        self._refill_delay_s = refill_delay_s
        self._refilling: asyncio.TimerHandle | None = None
        self._refill()

    @property
    def idle(self) -> int:
        return len(self._idle)

    def expect(self, count: int) -> None:
        """Begins to start this many, once, because they will be taken soon; what is not taken goes after a minute."""
        for _ in range(count - len(self._idle) - len(self._starting)):
            self._start_one()

    async def take(self) -> LiveSandbox:
        """An idle one that still works, one that is starting already, or a new one. Raises `SandboxUnavailable`."""
        self._taken.append(self._loop.time())
        try:
            while self._idle:
                sandbox = self._idle.popleft()
                if sandbox.session.usable:
                    return sandbox
                self._discard(sandbox)
            while self._starting:
                if (sandbox_or_none := await self._claim(self._starting.pop())) is not None:
                    return sandbox_or_none
            return await self._start(False)
        finally:
            self._refill_soon()

    async def close(self) -> None:
        """Stops all starts and hands all idle sandboxes to `discard`."""
        self._closed = True
        for timer in (self._retry, self._shrink, self._refilling):
            if timer is not None:
                timer.cancel()
        await self._tasks.close()
        while self._idle:
            self._discard(self._idle.popleft())

    async def _claim(self, task: asyncio.Task[LiveSandbox]) -> LiveSandbox | None:
        """What a start that is under way comes to; None when it fails."""
        try:
            sandbox = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                return None
            # The taker gave up: the start goes on, for the next one.
            self._await_idle(task)
            raise
        except SandboxUnavailable:
            return None
        # It was asked for before it was ready.
        return dataclasses.replace(sandbox, warm=False)

    def _start_one(self) -> None:
        task = self._tasks.spawn(self._ahead(), "starting a sandbox ahead of need")
        self._await_idle(task)

    async def _ahead(self) -> LiveSandbox:
        return await self._start(True)

    def _await_idle(self, task: asyncio.Task[LiveSandbox]) -> None:
        self._starting.add(task)
        task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[LiveSandbox]) -> None:
        if task not in self._starting:
            return  # claimed
        self._starting.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            logger.warning("a sandbox could not be started ahead of need: %s", error)
            if not self._closed and self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._try_again)
        elif self._closed:
            self._discard(task.result())
        else:
            self._idle.append(task.result())
            self._shrink_later()
            self._tasks.spawn(self._drop_when_lost(task.result()), f"watching {task.result().name}")

    async def _drop_when_lost(self, sandbox: LiveSandbox) -> None:
        await sandbox.session.lost()
        if sandbox in self._idle:
            self._idle.remove(sandbox)
            self._discard(sandbox)
            self._refill_soon()

    def _refill_soon(self) -> None:
        if self._refilling is None and not self._closed:
            self._refilling = self._loop.call_later(self._refill_delay_s, self._refill)

    def _try_again(self) -> None:
        self._retry = None
        self._refill()

    def _refill(self) -> None:
        if self._refilling is not None:
            self._refilling.cancel()
            self._refilling = None
        if self._closed or self._retry is not None:
            return
        now = self._loop.time()
        while self._taken and now - self._taken[0] > _DEMAND_WINDOW_S:
            self._taken.popleft()
        target = min(self._most, max(self._least, len(self._taken) - 1))
        for _ in range(target - len(self._idle) - len(self._starting)):
            self._start_one()
        if self._shrink is not None:
            self._shrink.cancel()
            self._shrink = None
        self._shrink_later()

    def _shrink_later(self) -> None:
        if self._shrink is None and (self._taken or self._idle):
            since = self._taken[0] if self._taken else self._loop.time()
            self._shrink = self._loop.call_at(since + _DEMAND_WINDOW_S + 0.1, self._drop_surplus)

    def _drop_surplus(self) -> None:
        self._shrink = None
        self._refill()
        target = min(self._most, max(self._least, len(self._taken) - 1))
        # An idle one of `expect` that nobody took is surplus as well.
        while len(self._idle) > target:
            self._discard(self._idle.pop())
