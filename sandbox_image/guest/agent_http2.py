"""HTTP/2 (RFC 9113), the client's side of it, without any I/O: bytes in, callbacks and bytes out.

Only what gRPC uses: no priorities, no pushes, no padding of its own. At the other end is our own orchestrator, so
what is malformed ends the connection, and with it the sandbox.
"""

from __future__ import annotations

import struct

from guest_hpack import Decoder, HpackError

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    from typing import Protocol

    from guest_hpack import Header

    class StreamOwner(Protocol):
        """Who is told what comes on a stream; `ended` is the last call."""

        def headers(self, headers: list[Header]) -> None:
            """A block of headers: the first, or the trailers."""

        def data(self, data: memoryview) -> None:
            """Some bytes, which have to be copied if they are to be kept."""

        def ended(self, error: int | None) -> None:
            """Nothing more comes. `error`: the code of a stream that was reset; None for one that ended in order."""


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct("!HBBBI")  # the length's upper two bytes and its last one, type, flags, stream
_SETTING = struct.Struct("!HI")
_NUMBER = struct.Struct("!I")

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0,
    1,
    *range(3, 10),
)
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _PRIORITIZED = 0x4, 0x8, 0x20

_ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 0x2, 0x4, 0x5
_DEFAULT_WINDOW, _DEFAULT_MAX_FRAME = 65_535, 16_384
_MAX_WINDOW = (1 << 31) - 1

NO_ERROR, CANCEL = 0x0, 0x8

MAX_FRAME = 1 << 20  # bytes of one that comes in
MAX_HEADER_BLOCK = 64 << 10
STREAM_WINDOW, CONNECTION_WINDOW = 4 << 20, 16 << 20  # what may come in before it was read
CHUNK = 64 << 10  # of a frame that goes out: a large message must not hold up a small one for long


class Http2Error(Exception):
    """The other end does not speak HTTP/2 as it should: the connection is of no more use."""


class Stream:
    """One request and its response. Made by `Connection.request`."""

    def __init__(self, number: int, owner: StreamOwner, window: int) -> None:
        self.number = number
        self.owner = owner
        self.window = window  # how much more may be sent
        self.pending: list[memoryview] = []
        self.finished = False  # what is pending is the last
        self.unread = 0  # bytes that came in and were not yet made room for


class Connection:
    """Feed `receive` with what comes in; send what `take` gives."""

    def __init__(self) -> None:
        self.greeted = False  # the other end has sent its settings
        self._streams: dict[int, Stream] = {}
        self._sending: list[Stream] = []  # those with something pending, in turn
        self._next_number = 1
        self._window = self._initial_window = _DEFAULT_WINDOW
        self._max_frame = _DEFAULT_MAX_FRAME
        self._unread = 0
        self._rest = bytearray()  # of what came in: a frame that is not whole yet
        self._decoder = Decoder()
        self._block: tuple[int, int, bytes] | None = None  # a header block that is continued: stream, flags, bytes
        self._control = bytearray(_PREFACE)
        settings = {_ENABLE_PUSH: 0, _INITIAL_WINDOW_SIZE: STREAM_WINDOW, _MAX_FRAME_SIZE: MAX_FRAME}
        self._put(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings.items()))
        self._put(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(CONNECTION_WINDOW - _DEFAULT_WINDOW))

    # --- out ---

    def request(self, block: bytes, owner: StreamOwner) -> Stream:
        """Begins a request with this header block."""
        stream = Stream(self._next_number, owner, self._initial_window)
        self._next_number += 2
        self._streams[stream.number] = stream
        self._put(_HEADERS, _END_HEADERS, stream.number, block)
        return stream

    def send(self, stream: Stream, *pieces: bytes, last: bool = False) -> None:
        """Sends bytes of a request's body, as fast as the other end takes them; nothing on a stream that has ended."""
        if stream.number not in self._streams:
            return
        stream.finished = last
        if not self._sending and len(pieces) == 1 and len(pieces[0]) <= self._room(stream):
            self._put_data(self._control, stream, pieces[0], last)
            return
        if not stream.pending:
            self._sending.append(stream)
        stream.pending.extend(memoryview(piece) for piece in pieces)

    def take(self) -> bytes | bytearray:
        """What to send next, at most a little more than CHUNK; empty when there is nothing, or no room."""
        if not self._control and not self._sending:
            return b""
        out, self._control = self._control, bytearray()
        for _ in range(len(self._sending)):
            if len(out) >= CHUNK or self._window <= 0:
                break
            stream = self._sending.pop(0)
            self._take_from(stream, out)
            if stream.pending:
                self._sending.append(stream)
        return out

    def _take_from(self, stream: Stream, out: bytearray) -> None:
        while stream.pending and len(out) < CHUNK:
            size = min(len(stream.pending[0]), self._max_frame, CHUNK, self._window, stream.window)
            if size <= 0 and stream.pending[0]:
                return
            piece = stream.pending.pop(0)
            if size < len(piece):
                stream.pending.insert(0, piece[size:])
            self._put_data(out, stream, piece[:size], stream.finished and not stream.pending)

    def _room(self, stream: Stream) -> int:
        """The size of a message that need not wait."""
        return min(self._window, stream.window, self._max_frame, CHUNK - len(self._control))

    def _put_data(self, out: bytearray, stream: Stream, data: bytes | memoryview, last: bool) -> None:
        self._window -= len(data)
        stream.window -= len(data)
        _put_frame(out, _DATA, _END_STREAM if last else 0, stream.number, data)

    def _put(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        _put_frame(self._control, kind, flags, number, payload)

    def _forget_pending(self, stream: Stream) -> None:
        if stream.pending:
            stream.pending.clear()
            self._sending.remove(stream)

    # --- in ---

    def receive(self, data: bytes | memoryview) -> None:
        """Takes what has come.

        Raises:
            Http2Error: it is not what may come now.
        """
        if not self._rest:
            self._rest += data[self._receive(memoryview(data)) :]
            return
        self._rest += data
        with memoryview(self._rest) as whole:
            taken = self._receive(whole)
        del self._rest[:taken]

    def close(self) -> None:
        """The connection is gone: ends every stream as one that was reset."""
        for stream in list(self._streams.values()):
            self._end(stream, CANCEL)

    def _receive(self, view: memoryview) -> int:
        """Takes the frames that are whole; returns how many bytes they were."""
        at, most = 0, len(view)
        try:
            while most - at >= _FRAME.size:
                high, low, kind, flags, number = _FRAME.unpack_from(view, at)
                length = high << 8 | low
                if length > MAX_FRAME:
                    raise Http2Error("a frame larger than was allowed")
                start = at + _FRAME.size
                if most - start < length:
                    break
                at = start + length
                self._frame(kind, flags, number & 0x7FFFFFFF, view[start:at])
        except struct.error:
            raise Http2Error("a frame that is too short") from None
        except HpackError as error:
            raise Http2Error(str(error)) from None
        return at

    def _frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if self._block is not None and kind != _CONTINUATION:
            raise Http2Error("a header block that is not continued")
        if kind == _DATA:
            self._on_data(flags, number, payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self._on_headers(kind, flags, number, payload)
        elif kind == _RST_STREAM:
            if (stream := self._streams.get(number)) is not None:
                self._end(stream, _NUMBER.unpack(payload)[0])
        elif kind == _SETTINGS and not flags & _ACK:
            self._on_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._put(_PING, _ACK, 0, bytes(payload))
        elif kind == _GOAWAY:
            self._on_goaway(_NUMBER.unpack_from(payload)[0] & _MAX_WINDOW)
        elif kind == _WINDOW_UPDATE:
            self._on_window_update(number, _NUMBER.unpack(payload)[0] & _MAX_WINDOW)
        elif kind == _PUSH_PROMISE:
            raise Http2Error("a push, which was forbidden")
        # What is left are acknowledgements, priorities, and kinds that do not exist yet (section 5.5).

    def _on_data(self, flags: int, number: int, payload: memoryview) -> None:
        size = len(payload)  # padding counts, too
        self._unread += size
        if self._unread >= CONNECTION_WINDOW // 2:
            self._put(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._unread))
            self._unread = 0
        stream = self._streams.get(number)
        if stream is None:
            return  # one that was reset meanwhile
        stream.unread += size
        if stream.unread >= STREAM_WINDOW // 2 and not flags & _END_STREAM:
            self._put(_WINDOW_UPDATE, 0, number, _NUMBER.pack(stream.unread))
            stream.unread = 0
        stream.owner.data(_unpadded(flags, payload))
        if flags & _END_STREAM:
            self._end(stream, None)

    def _on_headers(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if kind == _CONTINUATION:
            if self._block is None or self._block[0] != number:
                raise Http2Error("the continuation of nothing")
            _, first_flags, block = self._block
            block += payload
        else:
            first_flags, block = flags, bytes(_unprioritized(flags, _unpadded(flags, payload)))
        if len(block) > MAX_HEADER_BLOCK:
            raise Http2Error("a header block that is too long")
        if not flags & _END_HEADERS:
            self._block = number, first_flags, block
            return
        self._block = None
        headers = self._decoder.decode(block)  # always: the table is the whole connection's
        if (stream := self._streams.get(number)) is not None:
            stream.owner.headers(headers)
            if first_flags & _END_STREAM:
                self._end(stream, None)

    def _on_settings(self, payload: memoryview) -> None:
        self.greeted = True
        for setting, value in _SETTING.iter_unpack(payload):
            if setting == _INITIAL_WINDOW_SIZE:
                if value > _MAX_WINDOW:
                    raise Http2Error("a window that is too large")
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
            elif setting == _MAX_FRAME_SIZE:
                self._max_frame = value
        self._put(_SETTINGS, _ACK, 0, b"")

    def _on_goaway(self, last: int) -> None:
        for stream in [stream for number, stream in self._streams.items() if number > last]:
            self._end(stream, CANCEL)

    def _on_window_update(self, number: int, size: int) -> None:
        if number == 0:
            self._window += size
        elif (stream := self._streams.get(number)) is not None:
            stream.window += size

    def _end(self, stream: Stream, error: int | None) -> None:
        if self._streams.pop(stream.number, None) is None:
            return
        if error is None and (stream.pending or not stream.finished):
            # Answered before all was asked: the rest is not wanted (section 8.1).
            self._put(_RST_STREAM, 0, stream.number, _NUMBER.pack(NO_ERROR))
        self._forget_pending(stream)
        stream.owner.ended(error)


def _put_frame(out: bytearray, kind: int, flags: int, number: int, payload: bytes | memoryview) -> None:
    out += _FRAME.pack(len(payload) >> 8, len(payload) & 255, kind, flags, number)
    out += payload


def _unpadded(flags: int, payload: memoryview) -> memoryview:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error("more padding than there are bytes")
    return payload[1 : len(payload) - payload[0]]


def _unprioritized(flags: int, payload: memoryview) -> memoryview:
    return payload[5:] if flags & _PRIORITIZED else payload
