"""HTTP/2 (RFC 9113), the server's side of one connection, without any I/O: bytes in, callbacks and bytes out.

The other end is a guest, and may be anybody: all that is kept for it has a bound, and what it does is counted in
`frames`, for which it is charged. Only what gRPC uses is here: no priorities and no pushes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from orchestrator.sandbox import http2_frames as frame
from orchestrator.sandbox.http2_frames import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    MAX_NUMBER,
    NO_ERROR,
    REFUSED_STREAM,
    Http2Error,
    put_frame,
    unpadded,
)
from orchestrator.sandbox.http2_headers import DEFAULT_TABLE, MAX_HEADER_BYTES, NO_TABLE, Header, HeaderReader

STREAM_WINDOW = 65_535  # bytes of a request that come before anybody has asked for more; the protocol's own default
CHUNK = 64 << 10  # bytes that are sent of one stream before the next has its turn

_DEFAULT_MAX_FRAME = 16_384
_MOST_MAX_FRAME = (1 << 24) - 1
_MAX_FRAME = 64 << 10  # bytes of one that comes in
_MAX_SETTINGS = 64  # in a frame; there are not ten that are known
_STREAMS_A_FRAME = 16  # whose windows change with a setting, and that may then send: as long as a frame takes
_CONNECTION_WINDOW = 1 << 20  # given back as it is used: what is held is bounded by the streams' windows


class StreamOwner(Protocol):
    """Who is told what comes on a stream."""

    def data(self, data: memoryview, last: bool) -> None:
        """Bytes of the request, to be copied if they are to be kept; `last` when none follow."""

    def sent(self) -> None:
        """The response has left, whole. Nothing more is told."""

    def lost(self) -> None:
        """The other end has given the call up, or is gone. Nothing more is told."""


class Stream:
    """One request and its response. Made by `Connection`."""

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window  # how much more may be sent
        self.room = STREAM_WINDOW  # how much more may come
        self.owner: StreamOwner | None = None
        self.asked = False  # the request is complete
        self.pending: deque[memoryview] = deque()
        self.trailers: bytes | None = None  # what ends the response, after all that is pending


class Connection:
    """Feed `receive` with what comes in; send what `take` gives, until that is empty.

    `begin` is told each request, and returns who is told the rest of it; None when nobody wants to know.
    """

    def __init__(self, max_streams: int, begin: Callable[[Stream, list[Header]], StreamOwner | None]) -> None:
        self._begin = begin
        self._max_streams = max_streams
        self.frames = 0  # that have come in, those that take long as several
        self._streams: dict[int, Stream] = {}
        self._sending: deque[Stream] = deque()  # those with something to send, in turn
        self._last = 0
        self._window = self._initial_window = STREAM_WINDOW
        self._max_frame = _DEFAULT_MAX_FRAME
        self._unreturned = 0
        self._rest = bytearray()
        self._preface = frame.PREFACE
        self._greeted = False
        self._headers = HeaderReader()
        self._small_table = False  # the other end has no room for the table that we do not use
        self._update = b""  # what the next block of ours begins with
        self._block: tuple[int, int, bytearray] | None = None  # a header block that is continued: stream, flags, bytes
        self._control = bytearray()
        settings = (
            (frame.MAX_CONCURRENT_STREAMS, max_streams),
            (frame.MAX_FRAME_SIZE, _MAX_FRAME),
            (frame.MAX_HEADER_LIST_SIZE, MAX_HEADER_BYTES),
        )
        self._put(frame.SETTINGS, 0, 0, b"".join(frame.SETTING.pack(*setting) for setting in settings))
        self._put(frame.WINDOW_UPDATE, 0, 0, frame.NUMBER.pack(_CONNECTION_WINDOW - STREAM_WINDOW))

    # --- out ---

    @property
    def control_bytes(self) -> int:
        """What waits to be sent without any stream's window: acknowledgements, headers, resets."""
        return len(self._control)

    def headers(self, stream: Stream, block: bytes, *, last: bool = False) -> None:
        """Begins a response with this header block; `last` when it is all of it."""
        if stream.number in self._streams:
            self._put(
                frame.HEADERS,
                frame.END_HEADERS | (frame.END_STREAM if last else 0),
                stream.number,
                self._updated(block),
            )
            if last:
                self._close(stream)

    def send(self, stream: Stream, *pieces: bytes, trailers: bytes | None = None) -> None:
        """Sends bytes of a response, as fast as the other end takes them, and this header block after the last."""
        if stream.number not in self._streams or stream.trailers is not None:
            return
        if not stream.pending:
            self._sending.append(stream)
        for piece in pieces:
            if piece:
                stream.pending.append(memoryview(piece))
        stream.trailers = trailers

    def grant(self, stream: Stream, size: int) -> None:
        """Lets so many bytes more of a request come, than have been let until now."""
        if size > 0 and not stream.asked and stream.number in self._streams:
            stream.room += size
            self._put(frame.WINDOW_UPDATE, 0, stream.number, frame.NUMBER.pack(size))

    def reset(self, stream: Stream, code: int) -> None:
        """Ends a stream at once; its owner is told nothing more."""
        if self._streams.pop(stream.number, None) is not None:
            self._forget(stream)
            self._put(frame.RST_STREAM, 0, stream.number, frame.NUMBER.pack(code))

    def goodbye(self, code: int) -> None:
        """Says that this end will close, and why."""
        self._put(frame.GOAWAY, 0, 0, frame.NUMBER.pack(self._last) + frame.NUMBER.pack(code))

    def take(self) -> bytes:
        """What to send next, a little more than CHUNK at most beside what control needs; empty when there is none."""
        if not self._control and not self._sending:
            return b""
        out, self._control = self._control, bytearray()
        for _ in range(len(self._sending)):
            if len(out) >= CHUNK:
                break
            stream = self._sending.popleft()
            self._take_from(stream, out)
            if stream.pending:
                self._sending.append(stream)
        return bytes(out)

    def _take_from(self, stream: Stream, out: bytearray) -> None:
        pending = stream.pending
        while pending:
            size = min(len(pending[0]), self._max_frame, CHUNK - len(out), self._window, stream.window)
            if size <= 0:
                return
            piece = pending.popleft()
            if size < len(piece):
                pending.appendleft(piece[size:])
            self._window -= size
            stream.window -= size
            put_frame(out, frame.DATA, 0, stream.number, piece[:size])
        if stream.trailers is not None:
            put_frame(
                out, frame.HEADERS, frame.END_HEADERS | frame.END_STREAM, stream.number, self._updated(stream.trailers)
            )
            self._close(stream)

    def _close(self, stream: Stream) -> None:
        """The response is whole; what is left of the request is not wanted (section 8.1)."""
        del self._streams[stream.number]
        if not stream.asked:
            self._put(frame.RST_STREAM, 0, stream.number, frame.NUMBER.pack(NO_ERROR))
        if stream.owner is not None:
            stream.owner.sent()

    def _put(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        put_frame(self._control, kind, flags, number, payload)

    def _updated(self, block: bytes) -> bytes:
        """A block as it must go out: the first one after the table got smaller says so (RFC 7541, section 4.2)."""
        update, self._update = self._update, b""
        return update + block

    def _forget(self, stream: Stream) -> None:
        if stream.pending or stream.trailers is not None:
            stream.pending.clear()
            self._sending.remove(stream)

    # --- in ---

    def receive(self, data: memoryview) -> None:
        """Takes what has come. Raises `Http2Error`."""
        if self._preface:
            size = min(len(self._preface), len(data))
            if data[:size] != self._preface[:size]:
                raise Http2Error("what came is not HTTP/2")
            self._preface, data = self._preface[size:], data[size:]
        if not self._rest:
            self._rest += data[self._receive(data) :]
            return
        self._rest += data
        with memoryview(self._rest) as whole:
            taken = self._receive(whole)
        del self._rest[:taken]

    def close(self) -> None:
        """The connection is gone."""
        for stream in list(self._streams.values()):
            self._lose(stream)

    def _receive(self, view: memoryview) -> int:
        at, most = 0, len(view)
        try:
            while most - at >= frame.FRAME.size:
                high, low, kind, flags, number = frame.FRAME.unpack_from(view, at)
                length = high << 8 | low
                if length > _MAX_FRAME:
                    raise Http2Error("a frame larger than was allowed", FRAME_SIZE_ERROR)
                start = at + frame.FRAME.size
                if most - start < length:
                    break
                at = start + length
                self.frames += 1
                with view[start:at] as payload:
                    self._frame(kind, flags, number & MAX_NUMBER, payload)
        except struct.error:
            raise Http2Error("a frame of a wrong size", FRAME_SIZE_ERROR) from None
        return at

    def _frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if not self._greeted:
            if kind != frame.SETTINGS or flags & frame.ACK:
                raise Http2Error("a connection that does not begin with settings")
            self._greeted = True
        if self._block is not None and kind != frame.CONTINUATION:
            raise Http2Error("a header block that is not continued")
        if kind == frame.DATA:
            self._on_data(flags, number, payload)
        elif kind == frame.HEADERS:
            with unpadded(flags, payload) as whole, whole[5 if flags & frame.PRIORITIZED else 0 :] as block:
                self._on_block(number, flags, flags, bytearray(block))
        elif kind == frame.CONTINUATION:
            if self._block is None or self._block[0] != number:
                raise Http2Error("the continuation of nothing")
            _, first_flags, begun = self._block
            begun += payload
            self._on_block(number, first_flags, flags, begun)
        elif kind == frame.RST_STREAM:
            self._on_reset(number, payload)
        elif kind == frame.SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == frame.PING:
            if len(payload) != 8 or number:
                raise Http2Error("a ping that is none", FRAME_SIZE_ERROR)
            if not flags & frame.ACK:
                self._put(frame.PING, frame.ACK, 0, bytes(payload))
        elif kind == frame.WINDOW_UPDATE:
            self._on_window_update(number, frame.NUMBER.unpack(payload)[0] & MAX_NUMBER)
        elif kind == frame.PUSH_PROMISE:
            raise Http2Error("a push from a client")
        # What is left are priorities, goodbyes, and kinds that do not exist yet (section 5.5).

    def _on_data(self, flags: int, number: int, payload: memoryview) -> None:
        size = len(payload)  # padding counts, too
        self._unreturned += size
        if self._unreturned > _CONNECTION_WINDOW // 2:
            self._put(frame.WINDOW_UPDATE, 0, 0, frame.NUMBER.pack(self._unreturned))
            self._unreturned = 0
        stream = self._streams.get(number)
        if stream is None:
            self._check_begun(number)
            return  # one that ended here meanwhile
        if stream.asked:
            raise Http2Error("more of a request that was complete")
        stream.room -= size
        if stream.room < 0:
            raise Http2Error("more than a window has room for", FLOW_CONTROL_ERROR)
        stream.asked = bool(flags & frame.END_STREAM)
        if stream.owner is not None:
            with unpadded(flags, payload) as data:
                stream.owner.data(data, stream.asked)

    def _on_block(self, number: int, first_flags: int, flags: int, block: bytearray) -> None:
        if len(block) > MAX_HEADER_BYTES:
            raise Http2Error("a header block that is too long", ENHANCE_YOUR_CALM)
        if not flags & frame.END_HEADERS:
            self._block = number, first_flags, block
            return
        self._block = None
        headers, frames = self._headers.read(bytes(block))  # always: the table is the whole connection's
        self.frames += frames
        last = bool(first_flags & frame.END_STREAM)
        stream = self._streams.get(number)
        if stream is not None:
            if stream.asked or not last:
                raise Http2Error("headers in the middle of a request")
            stream.asked = True
            if stream.owner is not None:
                stream.owner.data(memoryview(b""), True)
        elif number > self._last and number % 2:
            self._last = number
            self._on_request(number, headers, last)
        elif not number % 2:
            raise Http2Error("a stream that no client can begin")

    def _on_request(self, number: int, headers: list[Header], last: bool) -> None:
        if len(self._streams) >= self._max_streams:
            self._put(frame.RST_STREAM, 0, number, frame.NUMBER.pack(REFUSED_STREAM))
            return
        stream = self._streams[number] = Stream(number, self._initial_window)
        stream.asked = last
        owner = self._begin(stream, headers)
        stream.owner = owner
        if last and owner is not None and number in self._streams:
            owner.data(memoryview(b""), True)

    def _on_reset(self, number: int, payload: memoryview) -> None:
        frame.NUMBER.unpack(payload)
        if (stream := self._streams.get(number)) is not None:
            self._lose(stream)
        else:
            self._check_begun(number)

    def _on_settings(self, flags: int, number: int, payload: memoryview) -> None:
        if number or (flags & frame.ACK and payload):
            raise Http2Error("settings that are none", FRAME_SIZE_ERROR)
        if flags & frame.ACK:
            return
        if len(payload) > _MAX_SETTINGS * frame.SETTING.size:
            raise Http2Error("more settings than there are", ENHANCE_YOUR_CALM)
        window = self._initial_window
        for setting, value in frame.SETTING.iter_unpack(payload):
            if setting == frame.INITIAL_WINDOW_SIZE:
                if value > MAX_NUMBER:
                    raise Http2Error("a window that is too large", FLOW_CONTROL_ERROR)
                window = value
            elif setting == frame.MAX_FRAME_SIZE:
                if not _DEFAULT_MAX_FRAME <= value <= _MOST_MAX_FRAME:
                    raise Http2Error("frames of no possible size")
                self._max_frame = value
            elif setting == frame.HEADER_TABLE_SIZE and value < DEFAULT_TABLE and not self._small_table:
                self._small_table, self._update = True, NO_TABLE
        if window != self._initial_window:
            # Once a frame, however often it is set there: each time takes as long as there are streams.
            self.frames += len(self._streams) // _STREAMS_A_FRAME
            for stream in self._streams.values():
                self._widen(stream, window - self._initial_window)
            self._initial_window = window
        self._put(frame.SETTINGS, frame.ACK, 0, b"")

    def _on_window_update(self, number: int, size: int) -> None:
        if not size:
            raise Http2Error("a window that grows by nothing")
        if not number:
            self._window += size
            if self._window > MAX_NUMBER:
                raise Http2Error("a window that is too large", FLOW_CONTROL_ERROR)
        elif (stream := self._streams.get(number)) is not None:
            self._widen(stream, size)
        else:
            self._check_begun(number)

    def _widen(self, stream: Stream, size: int) -> None:
        stream.window += size
        if stream.window > MAX_NUMBER:
            raise Http2Error("a window that is too large", FLOW_CONTROL_ERROR)

    def _check_begun(self, number: int) -> None:
        if number > self._last or not number % 2:
            raise Http2Error("a frame of a stream that was not begun")

    def _lose(self, stream: Stream) -> None:
        del self._streams[stream.number]
        self._forget(stream)
        if stream.owner is not None:
            stream.owner.lost()
