"""The clock of one running cell, and the ladder at its end: interrupt, grace, kill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent_loop import Loop, Timer

LOOK_S = 0.1  # at least so much between two looks at a cell that waits


class ProcessorTimes(Protocol):
    """Seconds of processor time, from no particular moment."""

    def worker(self) -> float:
        """Of the worker alone; costs one system call."""

    def everyone(self) -> float:
        """Of all processes of the code, in clock ticks; costs a walk through /proc."""


class CellClock:
    """Counts running time: it stands still while the cell waits for an answer from the host, and does nothing.

    The host knows how long a cell has waited, so it is asked whenever the limit could have been reached: cells that ask
    are the ones that must be quick, and no question touches the clock. That a question is in flight does not say that
    the cell waits for it: a thread may have asked while another spins. So processor time is looked at as well, and what
    was used is counted too.
    """

    def __init__(
        self,
        loop: Loop,
        time_limit_s: float,
        grace_s: float,
        times: ProcessorTimes,
        check: Callable[[], None],
        interrupt: Callable[[], None],
        kill: Callable[[str], None],
    ) -> None:
        """`time_limit_s` 0: no limit. `check` asks the host, whose answer comes to `told`.

        `kill` is given the cause: "timed_out" or "interrupted".
        """
        self._loop = loop
        self._limit_s = time_limit_s if 0 < time_limit_s < float("inf") else 0.0
        self._grace_s = max(0.0, grace_s)
        self._times = times
        self._check = check
        self._interrupt = interrupt
        self._kill = kill
        self._began = loop.time()
        self._timer: Timer | None = None
        self._checking = False
        self.stopped_for = ""  # the cause, once the cell has been interrupted
        if self._limit_s:
            self._used_s = self._waited_s = 0.0  # until the last look
            self._looked_at = self._began
            self._worker_s = times.worker()
            self._everyone_s: float | None = None
            self._timer = loop.call_later(self._limit_s, self._look)

    def told(self, waited_s: float, waits: bool) -> None:
        """The host says how long the cell has waited in all, and whether it does so now.

        Counts what was used since the last look, and stops the cell or comes back when the limit can be reached.
        """
        if not self._checking or self.stopped_for:
            return
        self._checking = False
        now = self._loop.time()
        passed_s = now - self._looked_at
        # The first look has nothing to compare with but the worker's own time, which is known from the start.
        everyone_s = self._times.everyone()
        busy_s = self._times.worker() - self._worker_s if self._everyone_s is None else everyone_s - self._everyone_s
        self._used_s += max(passed_s - (waited_s - self._waited_s), busy_s, 0.0)
        self._everyone_s, self._looked_at, self._waited_s = everyone_s, now, waited_s
        left_s = self._limit_s - self._used_s
        if left_s <= 0:
            self.stop("timed_out")
        else:
            self._timer = self._loop.call_later(max(left_s, LOOK_S) if waits else left_s, self._look)

    def stop(self, cause: str) -> None:
        """Interrupts the cell, and kills it when it has not ended after the grace. The first cause counts."""
        if self.stopped_for:
            return
        self.stopped_for = cause
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._grace_s, self._kill, cause)
        self._interrupt()

    def finish(self) -> float:
        """The cell has ended; returns how long ago it began, in seconds."""
        if self._timer:
            self._timer.cancel()
        return self._loop.time() - self._began

    def _look(self) -> None:
        self._checking = True
        self._check()
