"""Questions on their way to the host: how many at a time, whose answer is whose, and what ends with a cell."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from worker_calls import HEADERS, Question, Refused, Reply, body_of, reply_of
from worker_http2 import Call, Connection
from worker_interrupts import Interrupts
from worker_readers import BackgroundReader, Readers, Waiter

# As many as the host takes: what is more than this waits here.
MAX_IN_FLIGHT = 64
MAX_BYTES_IN_FLIGHT = 48 << 20

ENDED = Refused("ended", "the cell that asked has ended, or was interrupted")


class Ask:
    """One batch of questions. `on_reply` is called from any thread and must not block; only its first call counts."""

    __slots__ = ("asked", "awaited", "body", "call", "on_reply")

    def __init__(
        self,
        questions: list[Question],
        max_concurrent: int,
        on_reply: Callable[[Reply], None],
        *,
        stop_at_failure: bool,
        recursive: bool | None,
        awaited: bool = False,
    ) -> None:
        """`awaited`: no thread waits for the reply, so one has to read in its place."""
        self.asked = len(questions)
        self.body = body_of(questions, max_concurrent, stop_at_failure, recursive)
        self.on_reply = on_reply
        self.awaited = awaited
        self.call: Call | None = None  # once it is to be sent


class Asks:
    """All asks of this process; its methods may be called from any thread."""

    def __init__(self, connection: Connection, interrupts: Interrupts) -> None:
        self._connection = connection
        self._interrupts = interrupts
        self._readers = Readers(connection.read, interrupts)
        self._lock = threading.Lock()
        self._waiting: deque[Ask] = deque()
        self._in_flight: set[Ask] = set()
        self._bytes = 0
        self._open = False  # whether a cell runs that may ask
        self._background = BackgroundReader(self._readers)
        self.process = os.getpid()  # the one that can ask: a forked child has no connection

    def begin_cell(self) -> None:
        """From now on there is a cell that may ask."""
        self._open = True

    def end_cell(self) -> None:
        """Fails every ask: no answer is coming any more. Called when the cell cannot be interrupted any more."""
        with self._lock:
            self._open = False
            asks = [*self._in_flight, *self._waiting]
            self._in_flight.clear()
            self._waiting.clear()
            self._bytes = 0
            self._background.end()
        for ask in asks:
            ask.on_reply(ENDED)
        if asks:
            with self._interrupts:
                self._connection.cancel_all()

    def start(self, ask: Ask) -> None:
        """Sends the questions, now or when others have been answered; outside of a cell they are refused.

        Raises:
            RuntimeError: the ask is awaited, and no thread can be started to read; or it is asked by code that has
                broken into another ask of this very thread, such as a signal handler.
        """
        if self._connection.is_sending_here:
            raise RuntimeError("a signal handler or finalizer cannot ask while its thread sends a question")
        with self._interrupts:
            with self._lock:
                if not self._open:
                    ask.on_reply(ENDED)
                    return
                if ask.awaited:
                    self._background.begin()  # to the end of the cell: to stop and go costs more than a hand-over
                self._waiting.append(ask)
            self._send_what_fits()

    def wait(self, waiter: Waiter) -> None:
        """Returns when the waiter is finished; this thread may read meanwhile. Raises KeyboardInterrupt."""
        self._readers.wait(waiter)

    def finish(self, waiter: Waiter) -> None:
        """Ends a wait."""
        self._readers.finish(waiter)

    def cancel(self, ask: Ask) -> None:
        """Nobody waits for this any more: the host is told, so that nobody pays for it."""
        if self._connection.is_sending_here:
            return  # see `start`
        with self._interrupts:
            with self._lock:
                if ask in self._waiting:
                    self._waiting.remove(ask)
                was_sent = self._take(ask)
            if was_sent and ask.call is not None:
                self._connection.cancel(ask.call)
            self._send_what_fits()

    def _ended(self, ask: Ask, call: Call) -> None:
        """The host has answered, on the thread that reads. One that was broken off may come again."""
        if ask in self._in_flight:
            ask.on_reply(reply_of(call, ask.asked))
            # Last, so that the reply is still expected when this has to be done again.
            with self._lock:
                self._take(ask)
        self._send_what_fits()

    def _take(self, ask: Ask) -> bool:
        if ask not in self._in_flight:
            return False
        self._in_flight.remove(ask)
        self._bytes -= len(ask.body)
        return True

    def _send_what_fits(self) -> None:
        while self._waiting:
            with self._lock:
                if not self._waiting:
                    return
                ask = self._waiting[0]
                full = len(self._in_flight) >= MAX_IN_FLIGHT or self._bytes + len(ask.body) > MAX_BYTES_IN_FLIGHT
                if full and self._in_flight:
                    return
                self._waiting.popleft()
                self._in_flight.add(ask)
                self._bytes += len(ask.body)
            call = ask.call = Call(lambda call, ask=ask: self._ended(ask, call))  # type: ignore[misc]
            try:
                self._connection.start(call, HEADERS, ask.body)
            except BaseException:
                # A signal handler has raised in whoever sends, and it may be another thread's ask.
                if not self._connection.has(call):
                    with self._lock:
                        if self._take(ask):
                            self._waiting.appendleft(ask)
                raise
            if ask not in self._in_flight:  # its cell has ended meanwhile
                self._connection.cancel(call)
