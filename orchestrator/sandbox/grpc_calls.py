"""gRPC over HTTP/2, the server's side: calls of one message that are answered with one, and one stream of messages.

The wire is that of the gRPC project ("gRPC over HTTP2"). Why not its own server: docs/decisions/0023. One call costs
no task and no turn of the event loop here; what is kept of a message before somebody reads it is a window's worth.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Callable, Sequence

from orchestrator.sandbox.http2 import STREAM_WINDOW, Connection, Stream
from orchestrator.sandbox.http2_frames import CANCEL
from orchestrator.sandbox.http2_headers import Header

OK, CANCELLED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 0, 1, 3, 8
FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL = 9, 12, 13

_PREFIX = struct.Struct("!BI")
_UNPRINTABLE = re.compile(rb"[^ -$&-~]")
# ":status: 200" of the static table, then a literal.
_RESPONSE = b"\x88\x00\x0ccontent-type\x10application/grpc"
_STREAM_ROOM = 1 << 20  # bytes of the stream that may be on their way, beside the message that is being taken


class BadMessage(Exception):
    """What came cannot be a message. `status` is gRPC's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def path_of(headers: Sequence[Header]) -> str | None:
    """The method that is called, `/package.Service/Method`; None when this is no call of gRPC."""
    found = dict(headers)
    if found.get(b":method") != b"POST" or not found.get(b"content-type", b"").startswith(b"application/grpc"):
        return None
    return found.get(b":path", b"").decode("ascii", "replace")


def refuse(http: Connection, stream: Stream, status: int, text: str) -> None:
    """Ends a call that has no response yet, with a status alone."""
    http.headers(stream, _RESPONSE + _trailers(status, text), last=True)


def refuse_what_is_no_call(http: Connection, stream: Stream) -> None:
    """Ends a request that is not gRPC's, in a way that any client understands."""
    http.headers(stream, b"\x00\x07:status\x03415" + _trailers(INVALID_ARGUMENT, "this is no call of gRPC"), last=True)


class _Incoming:
    """The messages of one request, put together from its bytes."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._buffer = bytearray()

    def add(self, data: memoryview) -> None:
        self._buffer += data

    @property
    def empty(self) -> bool:
        return not self._buffer

    def missing(self) -> int | None:
        """How many bytes are to come of the message that has begun, once its length is known. Raises `BadMessage`."""
        if len(self._buffer) < _PREFIX.size:
            return None
        length: int
        compressed, length = _PREFIX.unpack_from(self._buffer)
        if compressed:
            # A kilobyte that unpacks to gigabytes is refused before it is unpacked.
            raise BadMessage(UNIMPLEMENTED, "compressed messages are not taken")
        if length > self._cap:
            raise BadMessage(RESOURCE_EXHAUSTED, f"a message may have {self._cap:,} bytes")
        return max(0, _PREFIX.size + length - len(self._buffer))

    def take(self) -> bytes | None:
        """The next message, once it is whole. Raises `BadMessage`."""
        if self.missing() != 0:
            return None
        end = _PREFIX.size + _PREFIX.unpack_from(self._buffer)[1]
        if end == len(self._buffer):
            whole, self._buffer = self._buffer, bytearray()
            return bytes(memoryview(whole)[_PREFIX.size :])
        with memoryview(self._buffer) as view:
            message = bytes(view[_PREFIX.size : end])
        del self._buffer[:end]
        return message

    def whole(self, data: memoryview) -> bytes | None:
        """The message, where nothing came before and these bytes are exactly one: nearly always. They are not kept."""
        if self._buffer or len(data) < _PREFIX.size:
            return None
        compressed, length = _PREFIX.unpack_from(data)
        if compressed or length > self._cap or length != len(data) - _PREFIX.size:
            return None
        return bytes(data[_PREFIX.size :])

    def clear(self) -> None:
        self._buffer.clear()


class UnaryCall:
    """A call with one message each way. A `StreamOwner`.

    Of the question, a window's worth is taken at once; the rest when `read` is awaited, and then no more of it than its
    announced length.
    """

    def __init__(self, http: Connection, flush: Callable[[], None], stream: Stream, cap: int) -> None:
        self._http = http
        self._flush = flush
        self._stream = stream
        self._incoming = _Incoming(cap)
        self._question: bytes | None = None  # one that has come in one piece
        self._complete = False
        self._answered = False
        self._over = False
        self._changed: asyncio.Future[None] | None = None
        # When the other end gives the call up, `given_up` is called, then `handler` cancelled.
        self.given_up: Callable[[], None] | None = None
        self.handler: asyncio.Task[None] | None = None

    # --- for `Connection` ---

    def data(self, data: memoryview, last: bool) -> None:
        if not last or (message := self._incoming.whole(data)) is None:
            self._incoming.add(data)
        else:
            self._question = message
        self._complete = last
        self._wake()

    def sent(self) -> None:
        self._over = True
        self._wake()

    def lost(self) -> None:
        self._over = True
        if self.given_up is not None:
            self.given_up()
        if self.handler is not None:
            self.handler.cancel()

    # --- for the one who answers ---

    def arrived(self) -> bytes | None:
        """The question, if it is here already. Raises `BadMessage`: it is none, or is too large."""
        if (message := self._question) is not None:
            self._question = None
            return message
        message = self._incoming.take()
        if message is None and self._complete:
            raise BadMessage(INVALID_ARGUMENT, "there is no question")
        return message

    async def read(self) -> bytes:
        """Waits for the question. Raises `BadMessage`."""
        while (message := self.arrived()) is None:
            # Again when the other end pads what it sends: that takes room, too.
            if (missing := self._incoming.missing()) is not None and missing > self._stream.room:
                self._http.grant(self._stream, missing - self._stream.room)
                self._flush()
            await self._change()
        return message

    def answer(self, pieces: Sequence[bytes]) -> bool:
        """Answers with a message in pieces, as fast as the other end takes it; returns whether all of it has left."""
        self._answered = True
        self._incoming.clear()
        self._http.headers(self._stream, _RESPONSE)
        # Joined, since each piece would be a frame of its own.
        message = b"".join((_PREFIX.pack(0, sum(map(len, pieces))), *pieces))
        self._http.send(self._stream, message, trailers=_OK)
        self._flush()
        return self._over

    async def left(self) -> None:
        """Waits until all of the answer has left, or the call was given up."""
        while not self._over:
            await self._change()

    def refuse(self, status: int, text: str) -> None:
        """Ends the call with a status; one whose answer has begun is reset."""
        if self._answered:
            self._http.reset(self._stream, CANCEL)
        else:
            self._incoming.clear()
            refuse(self._http, self._stream, status, text)
        self._flush()

    async def _change(self) -> None:
        self._changed = asyncio.get_running_loop().create_future()
        try:
            await self._changed
        finally:
            self._changed = None

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


class MessageStream:
    """A call with many messages both ways. A `StreamOwner`."""

    def __init__(
        self,
        http: Connection,
        flush: Callable[[], None],
        stream: Stream,
        cap: int,
        received: Callable[[bytes], None],
        ended: Callable[[], None],
        broken: Callable[[str], None],
    ) -> None:
        """`received` is told each message; `ended`, that no more will come; `broken`, that what came cannot be one."""
        self._http = http
        self._flush = flush
        self._stream = stream
        self._incoming = _Incoming(cap)
        self._received = received
        self._ended = ended
        self._broken = broken
        http.headers(stream, _RESPONSE)

    # --- for `Connection` ---

    def data(self, data: memoryview, last: bool) -> None:
        incoming = self._incoming
        wanted = _STREAM_ROOM
        if (message := incoming.whole(data)) is not None:
            self._received(message)
        else:
            incoming.add(data)
            try:
                while not incoming.empty and (message := incoming.take()) is not None:
                    self._received(message)
                wanted += incoming.missing() or 0
            except BadMessage as error:
                self.end(error.status, str(error))
                self._broken(str(error))
                return
        if self._stream.room < wanted // 2:
            self._http.grant(self._stream, wanted - self._stream.room)
        if last:
            self._ended()

    def sent(self) -> None:
        """Nobody waits for it."""

    def lost(self) -> None:
        self._ended()

    # --- for the host ---

    @property
    def unsent(self) -> int:
        """How many messages have not left, those of more than a window counted twice."""
        return len(self._stream.pending)

    def send(self, message: bytes) -> None:
        """Sends a message, as fast as the other end takes it."""
        prefix = _PREFIX.pack(0, len(message))
        if len(message) < STREAM_WINDOW:
            self._http.send(self._stream, prefix + message)
        else:
            self._http.send(self._stream, prefix, message)
        self._flush()

    def end(self, status: int = OK, text: str = "") -> None:
        """Ends the call, after all that was sent."""
        self._http.send(self._stream, trailers=_trailers(status, text) if status else _OK)
        self._flush()


def _trailers(status: int, text: str) -> bytes:
    code, coded = b"%d" % status, _UNPRINTABLE.sub(_percent, text.encode("utf-8"))[:120]
    return b"\x00\x0bgrpc-status" + bytes((len(code),)) + code + b"\x00\x0cgrpc-message" + bytes((len(coded),)) + coded


def _percent(byte: re.Match[bytes]) -> bytes:
    return b"%%%02X" % byte[0][0]


_OK = b"\x00\x0bgrpc-status\x010"
