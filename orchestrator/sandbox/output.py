"""What one cell wrote to one stream, put together from the pieces that came."""

from __future__ import annotations

import codecs

from orchestrator.values import Captured, OutputChunk, OutputStream

_Decoder = codecs.getincrementaldecoder("utf-8")


class OutputOverrun(Exception):
    """A piece that a guest with our caps cannot send: out of order, or more than it was told to keep."""


class OutputFold:
    """Folds pieces, each with its offset in all that was written, into a `Captured`.

    At most `head_bytes + tail_bytes` are ever held: a piece beyond that raises `OutputOverrun`, since a guest that
    keeps its caps cannot send it.
    """

    def __init__(self, stream: OutputStream, head_bytes: int, tail_bytes: int, *, live: bool = True) -> None:
        """`live` False: nobody reads the chunks, so none are made."""
        self._stream = stream
        self._room = head_bytes + tail_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._end = 0
        self._jumped = False
        self._decoder = _Decoder("replace") if live else None

    def add(self, offset: int, data: bytes) -> OutputChunk | None:
        """Takes one piece; returns its text, if that is wanted and more than the beginning of a character."""
        if offset < self._end:
            raise OutputOverrun(f"{self._stream.value} piece at {offset}, after {self._end} bytes")
        if len(data) > self._room:
            raise OutputOverrun(f"more {self._stream.value} than the output limits allow")
        if offset > self._end:
            if self._jumped:
                raise OutputOverrun(f"{self._stream.value} left out bytes twice")
            self._jumped = True
            if self._decoder is not None:
                self._decoder.reset()
        self._room -= len(data)
        (self._tail if self._jumped else self._head).extend(data)
        self._end = offset + len(data)
        text = self._decoder.decode(data) if self._decoder is not None else ""
        return OutputChunk(self._stream, offset, text) if text else None

    def finish(self, total_bytes: int) -> Captured:
        """The stream as a whole. `total_bytes` is the writer's own count; less than what came is not believed."""
        total = max(total_bytes, self._end)
        kept = len(self._head) + len(self._tail)
        return Captured(
            head=self._head.decode("utf-8", "replace"),
            tail=self._tail.decode("utf-8", "replace"),
            total_bytes=total,
            omitted_bytes=total - kept,
        )
