"""The worker's end of the control socket.

Whoever waits reads (`worker_readers`). What is read is kept by the same call into C that reads it, and let go only when
it has been dealt with, so whatever breaks a wait off, a KeyboardInterrupt or what a signal handler of the code raises,
no frame is torn or lost: the next who waits goes on where this one was. Every send is shielded.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import threading
from collections import deque
from typing import NamedTuple, NoReturn, Protocol

from guest_frames import HEADER, FrameError, Message, encode, lengths, parse
from worker_interrupts import Interrupts
from worker_readers import Readers, Waiter

EXIT_CUT_OFF = 97  # the code has closed the control socket, or the agent is gone
READ_BYTES = 1 << 14  # at a time, and more of a frame that announces more
MAX_READ_BYTES = 1 << 18
_HEADER_BYTES = HEADER.size


class Command(NamedTuple):
    """What the main thread has to do: `open` or `cell`, with its raw data."""

    message: Message
    data: bytes


class Replies(Protocol):
    """Takes the answers to questions, on the thread that reads."""

    def take_reply(self, message: Message, data: bytes) -> None:
        """`message` has an `id`, and either `slots` or `refused`. One that was broken off comes again."""


class Channel:
    """Commands come out of `next_command`, on the main thread; the rest may be called from any thread of this process.

    The process ends when the agent closes its end, as soon as somebody reads.
    """

    def __init__(self, descriptor: int, interrupts: Interrupts) -> None:
        """Takes over the descriptor and moves it out of the way of code that closes low numbers."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(20, min(limit, 1024) - 16))
        os.close(descriptor)
        self._socket = socket.socket(fileno=high)
        self._interrupts = interrupts
        self._sending = threading.Lock()
        self._unread: list[bytes] = []  # in the order in which it came
        self._commands: deque[Command] = deque()
        self._listener = Waiter()  # the main thread, for a command
        self._replies: Replies | None = None
        self.readers = Readers(self._read, interrupts)
        self.process = os.getpid()
        os.register_at_fork(after_in_child=self._socket.close)

    def start(self, replies: Replies) -> None:
        """Says who takes the answers; before anybody waits."""
        self._replies = replies

    def next_command(self) -> Command:
        """Waits for what to do next."""
        while not self._commands:
            listener = self._listener = Waiter()
            # What has come by now is seen here, and what comes later finishes this listener.
            if not self._commands:
                self.readers.wait(listener)
        return self._commands.popleft()

    def send(self, message: Message, *data: bytes) -> None:
        """Sends one frame, whole.

        Raises:
            FrameError: the frame is over a cap; nothing was sent.
        """
        frame = encode(message, *data)
        with self._interrupts, self._sending:
            self._socket.sendall(frame)

    def _read(self) -> None:
        """Reads one frame and does what it says. Only who leads may call this."""
        try:
            missing = self._take_frame()
            while missing:
                self._receive(missing)
                missing = self._take_frame()
        except (FrameError, EOFError, KeyError):
            _cut_off()

    def _receive(self, missing: int) -> None:
        size = READ_BYTES if missing < READ_BYTES else min(missing, MAX_READ_BYTES)
        try:
            # Both in one call: between a `recv` and its own line, a signal handler could raise, and lose the bytes.
            self._interrupts.let_through(self._unread.extend, map(self._socket.recv, (size,)))
        except OSError:
            if self._is_cut_off():
                _cut_off()
            raise  # a signal handler's own: TimeoutError is one, too

    def _take_frame(self) -> int:
        """Does what the first unread frame says; returns 0, or how many bytes are missing for it.

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
        self._do(parse(whole[_HEADER_BYTES : _HEADER_BYTES + head]), whole[_HEADER_BYTES + head : end])
        self._unread = [whole[end:]] if size > end else []
        return 0

    def _do(self, message: Message, data: bytes) -> None:
        if message["op"] == "reply":
            assert self._replies is not None
            self._replies.take_reply(message, data)
        else:
            self._commands.append(Command(message, data))
            self.readers.finish(self._listener)

    def _is_cut_off(self) -> bool:
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _cut_off() -> NoReturn:
    """Without an agent there is nobody to work for, and a worker that cannot hear must not stay."""
    os._exit(EXIT_CUT_OFF)
