"""The worker's end of the control socket.

Only the reader thread reads and every send is shielded, so a KeyboardInterrupt can never tear a frame.
"""

from __future__ import annotations

import fcntl
import os
import queue
import resource
import socket
import threading
from typing import NamedTuple, Protocol

from guest_frames import HEADER, FrameError, Message, encode, lengths, parse
from worker_interrupts import Interrupts

EXIT_CUT_OFF = 97  # the code has closed the control socket, or the agent is gone


class Command(NamedTuple):
    """What the main thread has to do: `open` or `cell`, with its raw data."""

    message: Message
    data: bytes


class Replies(Protocol):
    """Takes the answers to questions, on the reader thread."""

    def take_reply(self, message: Message, data: bytes) -> None:
        """`message` has an `id`, and either `slots` or `refused`."""


class Channel:
    """Commands come out of `commands`; `send` may be called from any thread of this process."""

    def __init__(self, descriptor: int, interrupts: Interrupts) -> None:
        """Takes over the descriptor and moves it out of the way of code that closes low numbers."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(20, min(limit, 1024) - 16))
        os.close(descriptor)
        self._socket = socket.socket(fileno=high)
        self._interrupts = interrupts
        self._sending = threading.Lock()
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.process = os.getpid()
        os.register_at_fork(after_in_child=self._socket.close)

    def start(self, replies: Replies) -> None:
        """Starts the reader thread. The process ends when the agent closes its end."""
        threading.Thread(target=self._read, args=(replies,), name="rlm-control", daemon=True).start()

    def send(self, message: Message, *data: bytes) -> None:
        """Sends one frame, whole.

        Raises:
            FrameError: the frame is over a cap; nothing was sent.
        """
        frame = encode(message, *data)
        with self._interrupts, self._sending:
            self._socket.sendall(frame)

    def _read(self, replies: Replies) -> None:
        try:
            while True:
                head, data = lengths(self._exactly(HEADER.size))
                message = parse(self._exactly(head))
                raw = bytes(self._exactly(data)) if data else b""
                match message["op"]:
                    case "reply":
                        replies.take_reply(message, raw)
                    case "interrupt":
                        self._interrupts.request(message["cell"])
                    case _:
                        self.commands.put(Command(message, raw))
        except (OSError, EOFError, FrameError, KeyError):
            # Without an agent there is nobody to work for, and a worker that cannot hear must not stay.
            os._exit(EXIT_CUT_OFF)

    def _exactly(self, count: int) -> bytearray:
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            received = self._socket.recv_into(view)
            if not received:
                raise EOFError
            view = view[received:]
        return buffer
