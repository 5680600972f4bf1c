"""What is done when time runs out: work is stopped, and whoever asked for it is told.

A run's deadline shrinks on its way down: an RLM wraps up a margin before its own (`Deadline.sooner`), and its sub-calls
have a margin less than that. So a failure by time comes to a cell as a slot, while there is time to use the others, and
to an RLM as one last question, while there is time for its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from orchestrator.errors import DeadlineExceeded
from orchestrator.values import Deadline

T = TypeVar("T")


class TimeIsShort(Exception):
    """It is time to wrap up: what was waited for is given up. Never leaves the driver."""


def now() -> float:
    return asyncio.get_running_loop().time()


async def in_time(work: Coroutine[Any, Any, T], deadline: Deadline | None) -> T:
    """What `work` returns. Raises `DeadlineExceeded` when it is not done by then; it is cancelled, and awaited."""
    if deadline is None:
        return await work
    if now() >= deadline.at:
        work.close()
        raise DeadlineExceeded("max_seconds", deadline.max_seconds)
    timeout = asyncio.timeout_at(deadline.at)
    try:
        async with timeout:
            return await work
    except TimeoutError:
        if timeout.expired():
            raise DeadlineExceeded("max_seconds", deadline.max_seconds) from None
        raise


async def before(work: Coroutine[Any, Any, T], wrap_up: Deadline | None) -> T:
    """What `work` returns. Raises `TimeIsShort` when it has nothing to return by then; it is cancelled, and awaited."""
    if wrap_up is None:
        return await work
    task = asyncio.create_task(work)
    if not await done_by(task, wrap_up):
        task.cancel()
        await asyncio.wait({task})
        if task.cancelled():
            raise TimeIsShort
    return await task  # also when it was quicker than its cancellation: its answer is on record


async def done_by(task: asyncio.Task[Any], wrap_up: Deadline) -> bool:
    """Whether it has ended by then. It is cancelled, and awaited, when the caller is."""
    try:
        await asyncio.wait({task}, timeout=max(0.0, wrap_up.at - now()))
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise
    return task.done()
