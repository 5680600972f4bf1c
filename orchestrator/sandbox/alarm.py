"""One timer that is set for each cell in turn, and nearly always cleared before it goes off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls back once after so long, unless it is cleared or set anew before.

    A timer of asyncio's own is made, sorted in and thrown away for each cell: a twentieth of the host's share of a
    short one. Here a timer that comes too early is kept, and what is to be done is looked at when it is due.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._call: Callable[[], None] | None = None
        self._due = 0.0

    def set(self, delay_s: float, call: Callable[[], None]) -> None:
        """In so many seconds, in place of what it was set for before."""
        self._call = call
        self._due = due = self._loop.time() + delay_s
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._rings)
        elif self._timer.when() > due:
            self._timer.cancel()
            self._timer = self._loop.call_at(due, self._rings)

    def clear(self) -> None:
        """Nothing is called."""
        self._call = None

    def close(self) -> None:
        """Nothing is called, and nothing is kept by the loop."""
        self._call = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rings(self) -> None:
        timer, self._timer = self._timer, None
        if self._call is None or timer is None:
            return
        # By the timer's own time: the loop calls back a little before it, by the resolution of its clock.
        if timer.when() < self._due:
            self._timer = self._loop.call_at(self._due, self._rings)
            return
        call, self._call = self._call, None
        call()
