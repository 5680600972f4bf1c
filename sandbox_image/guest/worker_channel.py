"""The worker's end of the control socket: what the agent tells it to do, and what it reports.

What is read is kept by the same call into C that reads it, and let go only when it has been dealt with, so whatever a
signal handler of the code raises, no frame is torn or lost. Every send is shielded.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from typing import NamedTuple, NoReturn

from guest_frames import HEADER, FrameError, Message, encode, lengths, parse
from worker_interrupts import Interrupts

EXIT_CUT_OFF = 97  # the code has closed one of the two sockets, or who is at its other end is gone
READ_BYTES = 1 << 14  # at a time, and more of a frame that announces more
MAX_READ_BYTES = 1 << 18
_HEADER_BYTES = HEADER.size


class Command(NamedTuple):
    """What the main thread has to do: `open` or `cell`, with its raw data."""

    message: Message
    data: bytes


class Channel:
    """Used by the main thread. The process ends when the agent closes its end, as soon as it is read."""

    def __init__(self, descriptor: int, interrupts: Interrupts) -> None:
        self._socket = taken_over(descriptor)
        self._interrupts = interrupts
        self._unread: list[bytes] = []  # in the order in which it came
        self.process = os.getpid()
        os.register_at_fork(after_in_child=self._socket.close)

    def next_command(self) -> Command:
        """Waits for what to do next."""
        try:
            while not isinstance(found := self._take_frame(), Command):
                self._receive(found)
            return found
        except (FrameError, EOFError):
            cut_off()

    def send(self, message: Message, *data: bytes) -> None:
        """Sends one frame, whole.

        Raises:
            FrameError: the frame is over a cap; nothing was sent.
        """
        frame = encode(message, *data)
        with self._interrupts:
            self._socket.sendall(frame)

    def _receive(self, missing: int) -> None:
        size = READ_BYTES if missing < READ_BYTES else min(missing, MAX_READ_BYTES)
        try:
            # Both in one call: between a `recv` and its own line, a signal handler could raise, and lose the bytes.
            self._unread.extend(map(self._socket.recv, (size,)))
        except OSError:
            if self._is_cut_off():
                cut_off()
            raise  # a signal handler's own: TimeoutError is one, too

    def _take_frame(self) -> Command | int:
        """What the first unread frame says, or how many bytes are missing for it.

        Raises:
            EOFError: the agent is gone.
            FrameError: this is no frame.
        """
        unread = self._unread
        if not unread:
            return _HEADER_BYTES
        if not unread[-1]:
            raise EOFError
        size = len(unread[0]) if len(unread) == 1 else sum(map(len, unread))
        if size < _HEADER_BYTES:
            return _HEADER_BYTES - size
        if len(unread[0]) < _HEADER_BYTES:
            unread = self._unread = [b"".join(unread)]
        head, data = lengths(unread[0])
        end = _HEADER_BYTES + head + data
        if size < end:
            return end - size
        if len(unread) > 1:
            unread = self._unread = [b"".join(unread)]  # the pieces go now: a frame may be large
        whole = unread[0]
        command = Command(parse(whole[_HEADER_BYTES : _HEADER_BYTES + head]), whole[_HEADER_BYTES + head : end])
        self._unread = [whole[end:]] if size > end else []
        return command

    def _is_cut_off(self) -> bool:
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def taken_over(descriptor: int) -> socket.socket:
    """The socket of a descriptor, moved out of the way of code that closes low numbers."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(20, min(limit, 1024) - 16))
    os.close(descriptor)
    return socket.socket(fileno=high)


def cut_off() -> NoReturn:
    """Without an agent there is nobody to work for, and a worker that cannot hear must not stay."""
    os._exit(EXIT_CUT_OFF)
