"""The agent's end of the control socket. Whatever comes out of it may have been written by hostile code."""

from __future__ import annotations

import _socket
from typing import Protocol

from agent_loop import Loop
from guest_frames import FrameDecoder, FrameError, Message, encode

READ_BYTES = 1 << 18
MAX_UNREAD = 160 << 20  # bytes: a worker that leaves this much unread will never read it


class LinkOwner(Protocol):
    """Who is told what comes out of a link."""

    def on_message(self, message: Message, data: bytes) -> None:
        """One frame. A FrameError, KeyError, TypeError or ValueError from here breaks the link."""

    def on_broken(self, reason: str, ended: bool) -> None:
        """Nothing more comes; `ended` when it was closed in order, as it also is by the worker's death."""


class Link:
    """Non-blocking, bounded both ways."""

    def __init__(self, loop: Loop, control: _socket.socket, owner: LinkOwner) -> None:
        self._loop = loop
        self._socket = control
        self._owner = owner
        self._decoder = FrameDecoder()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._unsent = bytearray()
        self._open = True
        loop.add_reader(control, self._read)

    def send(self, message: Message | str, *data: bytes) -> None:
        """Sends one frame (see `encode`), now or when the worker reads; a worker that never reads breaks the link."""
        if not self._open:
            return
        try:
            frame = encode(message, *data)
        except FrameError as error:
            self._break(str(error), ended=False)
            return
        if not self._unsent:
            sent = self._write(frame)
            if sent == len(frame):
                return
            frame = frame[sent:]
            self._loop.add_writer(self._socket, self._flush)
        self._unsent += frame
        if len(self._unsent) > MAX_UNREAD:
            self._break("it does not read", ended=False)

    def close(self) -> None:
        """Forgets the socket, without closing it."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._unsent.clear()

    def _read(self) -> None:
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0  # reset: it died with frames unread
        if not size:
            self._break("it closed the control socket", ended=True)
            return
        try:
            for message, data in self._decoder.feed(self._buffer[:size]):
                self._owner.on_message(message, data)
                if not self._open:
                    return
        except (FrameError, KeyError, TypeError, ValueError) as error:
            self._break(f"{type(error).__name__}: {error}", ended=False)

    def _flush(self) -> None:
        del self._unsent[: self._write(self._unsent)]
        if not self._unsent and self._open:
            self._loop.remove_writer(self._socket)

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # it is dead: its end is seen by reading

    def _break(self, reason: str, ended: bool) -> None:
        self.close()
        self._owner.on_broken(reason, ended)
