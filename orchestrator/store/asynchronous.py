"""The store for an event loop: each call in a thread of its own few, so that a slow disk never holds the loop up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 4


class StoreThreads:
    """``await threads.call(store.find_run, run_id)``. Used as a context manager; closed, it waits for its threads."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._executor.shutdown)

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `method` of a `Store` returns or raises. Cancelled, it waits until the method is through: a write is
        either done or was never begun."""
        work = asyncio.get_running_loop().run_in_executor(self._executor, lambda: method(*args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # seen: nobody waits for it any more
            raise
