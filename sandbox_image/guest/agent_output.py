"""What the worker's processes write to descriptors 1 and 2: the head is sent as it comes, then a tail is kept."""

from __future__ import annotations

import fcntl
import os
import termios
from collections.abc import Callable

from agent_loop import Loop, Timer

READ_BYTES = 1 << 16  # in one turn of the event loop, so that a flood delays nothing else
COALESCE_S = 0.02

_waiting = memoryview(bytearray(4)).cast("i")  # filled by each FIONREAD

# Takes one piece of output: where it starts in all that the cell wrote, and its bytes.
Send = Callable[[int, bytes], None]


class Capture:
    """One stream of one worker. Between cells all is read and thrown away."""

    def __init__(self, loop: Loop, descriptor: int, send: Send) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._send = send
        self._active = False
        self._head_room = self._tail_cap = 0
        self._sent = self.total = 0  # bytes
        self._pending = bytearray()
        self._tail = bytearray()
        self._timer: Timer | None = None
        loop.add_reader(descriptor, self._read)

    def begin(self, head_bytes: int, tail_bytes: int) -> None:
        """From now on what comes belongs to a new cell; what is in the pipe already does not."""
        self._drain()
        self._head_room, self._tail_cap = head_bytes, tail_bytes
        self._sent = self.total = 0
        self._active = True

    def end(self) -> int:
        """Takes what is in the pipe now, sends what is left to send; returns how many bytes the cell wrote."""
        self._drain()
        self._flush()
        self._active = False
        if self._tail:
            self._send_tail()
        return self.total

    def close(self) -> None:
        """Stops reading; the descriptor stays open."""
        self._loop.remove_reader(self._descriptor)
        if self._timer:
            self._timer.cancel()

    def _send_tail(self) -> None:
        tail = bytes(self._tail[-self._tail_cap :])
        self._tail.clear()
        for start in range(0, len(tail), READ_BYTES):
            self._send(self.total - len(tail) + start, tail[start : start + READ_BYTES])

    def _read(self) -> None:
        self._take(READ_BYTES)

    def _drain(self) -> None:
        # Not until it is empty: somebody else may be filling it all the time.
        fcntl.ioctl(self._descriptor, termios.FIONREAD, _waiting)
        waiting = _waiting[0]
        while waiting > 0:
            taken = self._take(min(waiting, READ_BYTES))
            if not taken:
                return
            waiting -= taken

    def _take(self, count: int) -> int:
        try:
            data = os.read(self._descriptor, count)
        except BlockingIOError:
            return 0
        if not data:
            self._loop.remove_reader(self._descriptor)  # every writer has closed it
        elif self._active:
            self._keep(data)
        return len(data)

    def _keep(self, data: bytes) -> None:
        self.total += len(data)
        if self._head_room:
            head = data[: self._head_room]
            self._head_room -= len(head)
            self._pending += head
            data = data[len(head) :]
            if len(self._pending) >= READ_BYTES or not self._head_room:
                self._flush()
            elif self._timer is None:
                self._timer = self._loop.call_later(COALESCE_S, self._flush)
        if data and self._tail_cap:
            self._tail += data[-self._tail_cap :]
            if len(self._tail) > 2 * self._tail_cap:
                del self._tail[: -self._tail_cap]

    def _flush(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            piece = bytes(self._pending)
            self._pending.clear()
            self._send(self._sent, piece)
            self._sent += len(piece)
