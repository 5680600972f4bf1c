"""The agent's event loop: descriptors, timers and signals, one callback after the other.

It has the few methods of asyncio's loop that the agent needs, under the same names. Why: docs/decisions/0018.
"""

from __future__ import annotations

# Not `signal` and `socket`: what they make of these in Python is a quarter of the agent's start, and is not needed.
import _signal  # type: ignore[import-not-found]
import heapq
import itertools
import os
import select
import time

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    Callback = Callable[[], None]

    class HasFileno(Protocol):
        """A socket, for one."""

        def fileno(self) -> int: ...


_NONE: dict[int, Callback] = {}
MOST_CANCELLED = 100  # timers that are kept for nothing
READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Timer:
    """A call that is due at some time, unless it is cancelled."""

    __slots__ = ("_arguments", "_callback", "_loop")

    def __init__(self, loop: Loop, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._loop = loop
        self._callback: Callable[..., object] | None = callback
        self._arguments = arguments

    def cancel(self) -> None:
        """It is not called any more."""
        if self._callback is not None:
            self._callback, self._arguments = None, ()
            self._loop.timer_cancelled()

    def run(self) -> None:
        """Calls, at most once."""
        callback, arguments = self._callback, self._arguments
        self._callback, self._arguments = None, ()
        if callback is not None:
            callback(*arguments)


class Ended(Exception):
    """There is nothing to do but to end: the host did what the protocol does not allow, or no worker can be had."""


class Loop:
    """Runs callbacks until `stop`. What a callback raises comes out of `run`."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._watched: dict[int, dict[int, Callback]] = {}  # by descriptor, then by event
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0  # of them, at most
        self._order = itertools.count()
        self._signals: dict[int, Callback] = {}
        self._woken = -1
        self._running = False

    def time(self) -> float:
        """Seconds, from no particular moment."""
        return time.monotonic()

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> Timer:
        """Calls back in so many seconds."""
        timer = Timer(self, callback, arguments)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))
        return timer

    def timer_cancelled(self) -> None:
        """For timers. Those that were cancelled must not fill memory until they are due, as each cell's limit would."""
        self._cancelled += 1
        if self._cancelled > MOST_CANCELLED and self._cancelled > len(self._timers) // 2:
            self._timers = [entry for entry in self._timers if entry[2]._callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def add_reader(self, file: int | HasFileno, callback: Callback) -> None:
        """Calls back whenever there is something to read, or nothing more to come."""
        self._watch(file, READ, callback)

    def add_writer(self, file: int | HasFileno, callback: Callback) -> None:
        """Calls back whenever there is room to write."""
        self._watch(file, WRITE, callback)

    def remove_reader(self, file: int | HasFileno) -> None:
        """Does nothing where there is none."""
        self._watch(file, READ, None)

    def remove_writer(self, file: int | HasFileno) -> None:
        """Does nothing where there is none."""
        self._watch(file, WRITE, None)

    def add_signal_handler(self, number: int, callback: Callback) -> None:
        """Calls back, from the loop, after the signal; several in a row may become one call."""
        if self._woken < 0:
            self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            _signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
            self.add_reader(self._woken, self._on_signals)
        self._signals[number] = callback
        _signal.signal(number, _nothing)

    def stop(self) -> None:
        """Lets `run` return after the callbacks of this turn."""
        self._running = False

    def run(self) -> None:
        """Runs until `stop`."""
        self._running = True
        while self._running:
            for descriptor, events in self._poll.poll(self._until_next_timer()):
                # An end, or an error, is told to both. An earlier callback of this turn may have taken one away.
                if events & ~WRITE and (callback := self._watched.get(descriptor, _NONE).get(READ)) is not None:
                    callback()
                if events & ~READ and (callback := self._watched.get(descriptor, _NONE).get(WRITE)) is not None:
                    callback()
            if self._timers and self._timers[0][0] <= time.monotonic():
                self._run_timers()

    def _until_next_timer(self) -> float | None:
        while self._timers and self._timers[0][2]._callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        due: list[Timer] = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            timer.run()

    def _watch(self, file: int | HasFileno, event: int, callback: Callback | None) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        callbacks = self._watched.get(descriptor, {})
        before = sum(callbacks)
        if callback is not None:
            callbacks[event] = callback
        else:
            callbacks.pop(event, None)
        after = sum(callbacks)
        if after == before:
            return
        if not before:
            self._watched[descriptor] = callbacks
            self._poll.register(descriptor, after)
        elif after:
            self._poll.modify(descriptor, after)
        else:
            del self._watched[descriptor]
            self._poll.unregister(descriptor)

    def _on_signals(self) -> None:
        for number in set(os.read(self._woken, 4096)):
            if (callback := self._signals.get(number)) is not None:
                callback()


def _nothing(_number: int, _frame: object) -> None:
    """A handler that has to be there for the signal to wake the loop."""
