"""A context manager that stays entered between calls."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """A context manager that a task of its own enters and leaves, whichever tasks use its value in between.

    Timeouts and task groups inside a context manager must be left by the task that entered them; callers such as an
    RPC that creates and another that deletes are different tasks.
    """

    def __init__(self, value: T, release: asyncio.Event, holder: asyncio.Task[None]) -> None:
        self.value = value
        self._release = release
        self._holder = holder

    @classmethod
    async def enter(cls, manager: AbstractAsyncContextManager[T]) -> Held[T]:
        """Enters `manager`; raises what entering raises. A caller that is cancelled meanwhile leaves nothing behind."""
        entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        release = asyncio.Event()
        holder = asyncio.create_task(_hold(manager, entered, release))
        try:
            await asyncio.wait((asyncio.ensure_future(entered), holder), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            holder.cancel()
            await asyncio.wait([holder])
            raise
        if not entered.done():
            entered.cancel()
            await holder  # raises what entering raised
        return cls(entered.result(), release, holder)

    async def leave(self) -> None:
        """Leaves it, and waits until it is left. Raises what leaving raises; a second time does nothing."""
        if not self._release.is_set():
            self._release.set()
            await asyncio.shield(self._holder)


async def _hold(manager: AbstractAsyncContextManager[T], entered: asyncio.Future[T], release: asyncio.Event) -> None:
    async with manager as value:
        entered.set_result(value)
        await release.wait()
