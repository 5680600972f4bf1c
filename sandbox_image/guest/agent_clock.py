"""The clock of one running cell, and the ladder at its end: interrupt, grace, kill."""

from __future__ import annotations

from collections.abc import Callable

from agent_loop import Loop, Timer


class CellClock:
    """Counts running time only: it stands still while the cell waits for an answer from the host."""

    def __init__(
        self,
        loop: Loop,
        time_limit_s: float,
        grace_s: float,
        interrupt: Callable[[], None],
        kill: Callable[[str], None],
    ) -> None:
        """`time_limit_s` 0: no limit. `kill` is given the cause: "timed_out" or "interrupted"."""
        self._loop = loop
        self._limit_s = time_limit_s if 0 < time_limit_s < float("inf") else 0.0
        self._grace_s = max(0.0, grace_s)
        self._interrupt = interrupt
        self._kill = kill
        self._used_s = 0.0
        self._since: float | None = loop.time()
        self._timer: Timer | None = None
        self.stopped_for = ""  # the cause, once the cell has been interrupted
        self._set_limit()

    def pause(self) -> None:
        """The cell waits."""
        if self._since is None:
            return
        self._used_s += self._loop.time() - self._since
        self._since = None
        if self._timer and not self.stopped_for:
            self._timer.cancel()
            self._timer = None

    def resume(self) -> None:
        """The cell runs again."""
        if self._since is not None:
            return
        self._since = self._loop.time()
        if not self.stopped_for:
            self._set_limit()

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
        """The cell has ended; returns its running time in seconds."""
        self.pause()
        if self._timer:
            self._timer.cancel()
        return self._used_s

    def _set_limit(self) -> None:
        if self._limit_s:
            self._timer = self._loop.call_later(max(0.0, self._limit_s - self._used_s), self.stop, "timed_out")
