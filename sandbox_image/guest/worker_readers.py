"""Who reads what the host answers: whoever waits for some of it, one thread at a time (leader and followers).

A thread that waits while nobody reads takes the lead: it reads, and finishes the waits of the others as their things
come. The others follow: each sleeps on a lock of its own, until its wait is finished or the lead is free.

No wake-up is lost, since one rule holds: when nobody leads while somebody follows, a thread is awake on its way to take
the lead. Whoever ends a wait goes through `_leave`, which wakes a follower when nobody leads: a leader, and also a
follower that was woken to lead and gives up, as an interrupt makes it. Who sleeps is decided under one lock, in which
nothing is allocated that could start the garbage collector, and with it code of the cell.

A leader that is blocked in a read is not woken when somebody else finishes its wait, as the end of a cell does: it
serves the others until something comes, and then leaves. Something comes: the host answers every question, and when a
cell ends with questions that are given up, it is asked for a sign. Where one thread asks, there is neither a second
thread nor a hand-over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker_interrupts import Interrupts

if TYPE_CHECKING:
    from queue import SimpleQueue


class Waiter:
    """One wait of one thread. Used once: what breaks a wait off may leave `asleep` as it is."""

    __slots__ = ("asleep", "done")

    def __init__(self) -> None:
        self.done = False
        self.asleep = threading.Lock()
        self.asleep.acquire()


class Readers:
    """All who wait; methods may be called from any thread."""

    def __init__(self, read: Callable[[], None], interrupts: Interrupts) -> None:
        """`read` waits for something and does what it says, within the shield of `interrupts` but while it waits.

        Whatever breaks it off, it must be possible to call it again.
        """
        self._read = read
        self._interrupts = interrupts
        self._lock = threading.Lock()
        self._leader: Waiter | None = None
        self._leading_thread = 0
        self._followers: list[Waiter] = []  # those that sleep: who is woken is taken out

    def wait(self, waiter: Waiter) -> None:
        """Returns when `waiter` is finished.

        Raises:
            KeyboardInterrupt: the cell was interrupted meanwhile.
            RuntimeError: called from code that has broken into a wait of this very thread, such as a signal handler.
        """
        with self._interrupts:
            try:
                while not waiter.done:
                    if self._follows(waiter):
                        self._interrupts.let_through(waiter.asleep.acquire)
                    else:
                        while not waiter.done:
                            self._read()
            finally:
                # Before any call, in which a signal handler of the code could raise: the lead would stay taken.
                if self._leader is waiter:
                    self._leader = None
                self._leave(waiter)

    def finish(self, waiter: Waiter) -> None:
        """What it waits for has come; again is harmless."""
        with self._lock:
            waiter.done = True
            if waiter in self._followers:
                self._followers.remove(waiter)
                waiter.asleep.release()

    def _follows(self, waiter: Waiter) -> bool:
        """Makes it the leader when there is none, else a follower, unless it is finished."""
        me = threading.get_ident()
        with self._lock:
            if self._leader is None:
                self._leader = waiter
                self._leading_thread = me
                return False
            if waiter.done:
                return False
            if self._leading_thread != me:
                self._followers.append(waiter)
                return True
        raise RuntimeError("a signal handler or finalizer cannot ask while its thread waits for an answer")

    def _leave(self, waiter: Waiter) -> None:
        with self._lock:
            if waiter in self._followers:
                self._followers.remove(waiter)
            if self._leader is None and self._followers:
                self._followers.pop(0).asleep.release()


class BackgroundReader:
    """A thread that reads in the place of those who cannot wait: asks that are awaited. The first one starts it."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._waiter: Waiter | None = None  # there is one while it reads
        self._work: SimpleQueue[Waiter] | None = None

    def begin(self) -> None:
        """Reads until `end`. As `end`, called by one thread at a time.

        Raises:
            RuntimeError: no thread can be started.
        """
        if self._work is None:
            from queue import SimpleQueue  # asyncio brings it anyway, and a worker without needs it not

            work: SimpleQueue[Waiter] = SimpleQueue()
            threading.Thread(target=self._run, args=(work,), name="rlm-control", daemon=True).start()
            self._work = work
        if self._waiter is None:
            self._waiter = Waiter()
            self._work.put(self._waiter)

    def end(self) -> None:
        """Nothing is awaited any more. It leaves when the next thing comes, as any leader."""
        if self._waiter is not None:
            self._readers.finish(self._waiter)
            self._waiter = None

    def _run(self, work: SimpleQueue[Waiter]) -> None:
        while True:
            self._readers.wait(work.get())
