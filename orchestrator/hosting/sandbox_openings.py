"""Sandboxes that are being opened, or were, by request id: asked for twice they are one, asked for in vain they go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import RequestConflict
from orchestrator.hosting.clock import Alarm, Clock
from orchestrator.hosting.kept_sandbox import KeptSandbox
from orchestrator.tasks import TaskSet

UNCLAIMED_S = 30.0  # longer than a client goes on asking after a lost connection

Key = tuple[str, str]  # principal, request id; no request id: cannot be found again


@dataclass(slots=True, eq=False)
class _Opening:
    said: str
    task: asyncio.Task[KeptSandbox]
    waiting: int = 0
    claimed: bool = False  # somebody has been told of it
    alarm: Alarm | None = None

    def disarm(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None


class Openings:
    """`end` ends a sandbox that nobody has asked for again."""

    def __init__(
        self, clock: Clock, tasks: TaskSet, end: Callable[[KeptSandbox, str], Coroutine[Any, Any, None]]
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._end = end
        self._known: dict[Key, _Opening] = {}

    async def get(self, key: Key, said: str, open_: Callable[[], Coroutine[Any, Any, KeptSandbox]]) -> KeptSandbox:
        """The sandbox of this request, opened if it is not known. Raises `RequestConflict`, and what `open_` raises.

        The opening is no part of the caller's task: one who hangs up, and asks again with the same id, gets what was
        begun. When nobody does, it is ended.
        """
        opening = self._known.get(key) if key[1] else None
        if opening is None:
            opening = _Opening(said, self._tasks.spawn(open_(), "opening a kept sandbox"))
            if key[1]:
                self._known[key] = opening
                opening.task.add_done_callback(lambda task: self._forget_failed(key, task))
        elif opening.said != said:
            raise RequestConflict(key[1])
        opening.disarm()
        opening.waiting += 1
        try:
            kept = await asyncio.shield(opening.task)
            opening.claimed = True
            return kept
        except asyncio.CancelledError:
            if opening.waiting == 1 and not opening.claimed:
                self._left(key, opening)
            raise
        finally:
            opening.waiting -= 1

    def forget(self, kept: KeptSandbox) -> None:
        for key, opening in tuple(self._known.items()):
            task = opening.task
            if task.done() and not task.cancelled() and not task.exception() and task.result() is kept:
                opening.disarm()
                del self._known[key]

    async def stop(self) -> None:
        """What is being opened is not; returns when it is gone."""
        for opening in self._known.values():
            opening.disarm()
        tasks = [opening.task for opening in self._known.values() if not opening.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _left(self, key: Key, opening: _Opening) -> None:
        """The last one who waited has gone."""
        if opening.task.cancelled():
            return
        if key[1]:
            opening.alarm = self._clock.call_later(UNCLAIMED_S, lambda: self._give_up(key, opening))
        else:
            self._give_up(key, opening)

    def _give_up(self, key: Key, opening: _Opening) -> None:
        if opening.waiting > 1 or opening.claimed:
            return
        if self._known.get(key) is opening:
            del self._known[key]
        self._tasks.spawn(self._abandon(opening.task), "removing a sandbox that nobody waits for")

    async def _abandon(self, task: asyncio.Task[KeptSandbox]) -> None:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await self._end(task.result(), "nobody waited for it")

    def _forget_failed(self, key: Key, task: asyncio.Task[KeptSandbox]) -> None:
        if task.cancelled() or task.exception() is not None:
            opening = self._known.get(key)
            if opening is not None and opening.task is task:
                opening.disarm()
                del self._known[key]
