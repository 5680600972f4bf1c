"""SIGINT as KeyboardInterrupt in the running cell, and nowhere else.

An interrupt names its cell and comes in on the control socket; the reader thread turns it into a signal for the main
thread. So one that arrives just after its cell's end hits nothing: the thread that would raise it is also the one that
would bring the next cell.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """Used as a context manager it is a shield: a KeyboardInterrupt that falls into it is raised at its end."""

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._cell = 0
        self._shields = 0
        self._held = False
        self.requested = False  # the running cell has been asked to stop
        signal.signal(signal.SIGINT, self._on_signal)

    def arm(self, cell: int) -> None:
        """From now on this cell can be interrupted. Also takes SIGINT back from code that has changed it."""
        self.requested = self._held = False
        self._shields = 0
        if signal.getsignal(signal.SIGINT) != self._on_signal:
            signal.signal(signal.SIGINT, self._on_signal)
        self._cell = cell

    def disarm(self) -> None:
        """From now on nothing is raised."""
        self._cell = 0

    def request(self, cell: int) -> None:
        """Called from the reader thread: interrupts that cell, if it is the one that runs."""
        if cell == self._cell:
            self.requested = True
            signal.pthread_kill(self._main, signal.SIGINT)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self._cell:
            return
        if self._shields:
            self._held = True
            return
        raise KeyboardInterrupt

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._shields += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.get_ident() != self._main:
            return
        self._shields -= 1
        if self._held and not self._shields:
            self._held = False
            raise KeyboardInterrupt
