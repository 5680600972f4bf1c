"""A context manager that remembers who entered and left it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    def __init__(self, *, full: bool = False, slow: bool = False) -> None:
        self.asked = asyncio.Event()
        self.entered_by: asyncio.Task[object] | None = None
        self.left_by: asyncio.Task[object] | None = None
        self._full = full
        self._slow = slow

    @asynccontextmanager
    async def stay(self) -> AsyncIterator[Room]:
        self.asked.set()
        if self._full:
            raise ValueError("full")
        try:
            if self._slow:
                await asyncio.Event().wait()
            self.entered_by = asyncio.current_task()
            yield self
        finally:
            self.left_by = asyncio.current_task()
