"""Sandboxes on their way out: not in the way of those that come, and never many."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from orchestrator.sandbox.launcher import Launcher, LiveSandbox
from orchestrator.tasks import TaskSet

MOST_AT_A_TIME = 4
# Half of the processors: more make none of them quicker, and hold up who takes a sandbox (docs/decisions, 0013).
FEW_AT_A_TIME = max(1, min(MOST_AT_A_TIME, (os.cpu_count() or 1) // 2))
_DRAIN_S = 60.0


class Removals:
    """Removes what is handed to it, each in a task of its own.

    While few are on their way, one that was left at rest waits `delay_s`, and few are removed at a time. With more than
    `backlog` of them, none waits, and more are removed at a time: what they hold counts in no limit.
    """

    def __init__(self, launcher: Launcher, delay_s: float, backlog: int) -> None:
        self._launcher = launcher
        self._delay_s = delay_s
        self._backlog = backlog
        self._tasks = TaskSet()
        self._hurry = asyncio.Event()
        self._leaving = 0  # all that were handed over and are not gone
        self._removing = 0
        self._changed = asyncio.Condition()

    def add(self, sandbox: LiveSandbox, *, at_rest: bool = False) -> None:
        self._leaving += 1
        if self._leaving > self._backlog:
            self._hurry.set()
        self._tasks.spawn(self._remove(sandbox, at_rest), f"removing {sandbox.name}")

    async def close(self) -> None:
        """Waits until all are gone, for a while; then they are given up."""
        self._backlog = 0
        self._hurry.set()
        await self._tasks.drain(_DRAIN_S)
        await self._tasks.close()

    async def _remove(self, sandbox: LiveSandbox, at_rest: bool) -> None:
        if at_rest:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._delay_s):
                    await self._hurry.wait()
        try:
            # Whoever waits for its turn has no guest any more that could do anything.
            await self._launcher.hang_up(sandbox)
        finally:
            await self._in_turn(sandbox)

    async def _in_turn(self, sandbox: LiveSandbox) -> None:
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            self._removing += 1
        try:
            await self._launcher.remove(sandbox)
        finally:
            self._removing -= 1
            self._leaving -= 1
            if self._leaving < self._backlog:
                self._hurry.clear()
            async with self._changed:
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._removing < (MOST_AT_A_TIME if self._hurry.is_set() else FEW_AT_A_TIME)
