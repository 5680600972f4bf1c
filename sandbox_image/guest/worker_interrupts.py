"""SIGINT as KeyboardInterrupt in the running cell, and nowhere else.

The agent sends the signal to the main thread, and only while a cell runs as far as it knows. One that comes just after
the cell's end finds no cell armed and does nothing. It cannot hit the next cell either: the agent sends that one after
the signal, so by the time the main thread has read the cell, the signal is at least pending there; and before `arm`
arms, it lets the kernel deliver what is pending and Python run the handlers of what was delivered.
"""

from __future__ import annotations

# `signal` makes enumerations of all that goes in and comes out: several times the price, and every cell pays it.
import _signal  # type: ignore[import-not-found]
from collections.abc import Callable
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any

_SIGINT = (_signal.SIGINT,)


class Interrupts:
    """Used as a context manager it is a shield: a KeyboardInterrupt that falls into it is raised at its end."""

    def __init__(self) -> None:
        self._main = get_ident()
        self._cell = 0
        self._shields = 0
        self._held = False
        self.requested = False  # the running cell has been asked to stop
        self._handler = self._on_signal
        _signal.signal(_signal.SIGINT, self._handler)

    def arm(self, cell: int) -> None:
        """From now on this cell can be interrupted. Also takes SIGINT back from code that has changed or blocked it."""
        self._take_back()
        # Returns with no signal pending that was sent before, not even one that the last cell had blocked.
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGINT)
        self.requested = self._held = False
        self._shields = 0
        self._cell = cell

    def disarm(self) -> None:
        """From now on nothing is raised, nor does a handler of the cell's own run."""
        self._cell = 0
        self._held = False
        self._take_back()

    def _take_back(self) -> None:
        if _signal.getsignal(_signal.SIGINT) is not self._handler:
            _signal.signal(_signal.SIGINT, self._handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self._cell:
            return
        self.requested = True
        if self._shields:
            self._held = True
            return
        raise KeyboardInterrupt

    def let_through(self, block: Callable[..., object], *arguments: Any) -> None:
        """Calls what blocks; within one shield, a KeyboardInterrupt is raised here nevertheless."""
        if get_ident() != self._main:
            block(*arguments)
            return
        # Python runs handlers at calls: none can raise between a change of the count and the edge of this block.
        self._shields -= 1
        try:
            if self._held and not self._shields:
                self._held = False
                raise KeyboardInterrupt
            block(*arguments)
        finally:
            self._shields += 1

    def __enter__(self) -> None:
        if get_ident() == self._main:
            self._shields += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if get_ident() != self._main:
            return
        self._shields -= 1
        if self._held and not self._shields:
            self._held = False
            raise KeyboardInterrupt
