"""Tasks that outlive the call that started them, but not their owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")


class TaskSet:
    """Adopts tasks; on close they are cancelled and awaited.

    A gRPC handler is nobody's child: `grpc.aio.Server.stop` does not await it (grpc#37239), nor does a `TaskGroup` of
    ours. A `TaskGroup` would also cancel the neighbors of a task that fails, which have nothing to do with it.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts it. A failure that nobody awaits is logged."""
        task = asyncio.create_task(work, name=name)
        self.adopt(task)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if self._closed:
            task.cancel()

    async def drain(self, timeout_s: float) -> None:
        """Lets them end by themselves for so long."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout_s)

    async def close(self) -> None:
        """Cancels and awaits all of them, those that are adopted meanwhile too."""
        self._closed = True
        own = asyncio.current_task()
        while others := [task for task in self._tasks if task is not own]:
            for task in others:
                task.cancel()
            await asyncio.wait(others)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("the task %s failed", task.get_name(), exc_info=error)
