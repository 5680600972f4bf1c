"""The answers that a guest has not read yet. What it does not take stays in the host's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_MAX_BYTES = 128 * 1024 * 1024  # two messages of the largest size
_TIMEOUT_S = 30.0
_SECOND_LOOK_S = 1.0


class Unread:
    """Counts an answer until its sending has ended; tells of one that is not read in time."""

    def __init__(self, not_read: Callable[[asyncio.Task[Any]], None]) -> None:
        """`not_read` is given who sends it, and ends that."""
        self._not_read = not_read
        self._loop = asyncio.get_running_loop()
        self._bytes = 0
        self._since: dict[asyncio.Task[Any], float] = {}  # the oldest first
        self._ended: asyncio.Event = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None

    def fits(self, size: int) -> bool:
        return not self._bytes or self._bytes + size <= _MAX_BYTES

    async def room(self, size: int) -> None:
        """Waits until an answer of so many bytes may be built."""
        while not self.fits(size):
            self._ended.clear()
            await self._ended.wait()

    def add(self, size: int, sending: asyncio.Task[Any]) -> None:
        """Counts an answer until `sending` has ended."""
        self._bytes += size
        self._since[sending] = self._loop.time()

        def ended(_: asyncio.Task[Any]) -> None:
            self._bytes -= size
            del self._since[sending]
            self._ended.set()

        sending.add_done_callback(ended)
        if self._watch is None:
            self._watch = self._loop.call_later(_TIMEOUT_S, self._check, None)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _check(self, suspected: asyncio.Task[Any] | None) -> None:
        # One timer for all calls, that may look too late: a timer for each would cost each of them.
        self._watch = None
        if not self._since:
            return
        oldest = next(iter(self._since))
        left = self._since[oldest] + _TIMEOUT_S - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._check, None)
        elif oldest is not suspected:
            # A process that was itself held up sees what was read meanwhile before it judges.
            self._watch = self._loop.call_later(_SECOND_LOOK_S, self._check, oldest)
        else:
            self._not_read(oldest)
            self._watch = self._loop.call_later(_SECOND_LOOK_S, self._check, None)
