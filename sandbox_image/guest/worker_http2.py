"""HTTP/2 (RFC 9113) for the worker's calls: the client's side, on a socket that blocks, used by any thread.

Not the agent's (`agent_http2`): here a signal handler of the code, or an interrupt, may raise between any two calls of
the main thread. So whatever belongs together is one tuple, put in its place by one assignment; what the socket has
taken or given is noted by the same call into C that does it; and what was read stays until all of it has been dealt
with, which may happen twice and is then the same as once. Whatever breaks off, the next who sends or reads goes on.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from guest_hpack import Decoder, Header, HpackError
from worker_interrupts import Interrupts

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
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 0x1, 0x2, 0x4, 0x5
_DEFAULT_WINDOW, _DEFAULT_MAX_FRAME = 65_535, 16_384
_MAX_NUMBER = (1 << 31) - 1

NO_ERROR, CANCEL = 0x0, 0x8

MAX_FRAME = 1 << 20  # bytes of one that comes in
CONNECTION_WINDOW = 16 << 20  # that may come in before anybody has read it; an answer's own window is never in the way
CHUNK = 64 << 10  # of a frame that goes out: a large question must not hold up a small one for long
READ_BYTES = 1 << 14  # at a time, and more of a frame that announces more


_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTSOCK)  # or closed by the code


class Http2Error(Exception):
    """The other end does not speak HTTP/2 as it should: the connection is of no more use."""


class Call:
    """One request, and what comes of it. `ended` is called once or more, on the thread that reads."""

    __slots__ = ("ended", "error", "grants", "headers", "number", "pieces")

    def __init__(self, ended: Callable[[Call], None]) -> None:
        self.ended = ended
        self.number = 0
        self.headers: dict[bytes, bytes] = {}  # of both blocks; the names of pseudo-headers have their colon
        self.error: int | None = None  # of a stream that was reset
        # By their positions in what has come, so that what is read again is not there twice.
        self.pieces: dict[int, bytes] = {}
        self.grants: dict[int, int] = {}

    @property
    def data(self) -> bytes:
        """All that has come."""
        return next(iter(self.pieces.values())) if len(self.pieces) == 1 else b"".join(self.pieces.values())


# What goes out. Plain tuples, this one and the next: they are made anew for each frame.
_Out = tuple[
    int,  # the number of the next call
    int,  # what is spent of the connection's window, in bytes
    int,  # where the last of the pieces ends, counted from the connection's beginning
    tuple[bytes, ...],  # the pieces that are not known to have left, in their order
    dict[int, tuple[memoryview, int]],  # by call: what has no window yet, and what it has spent of its own
]
# What comes in.
_In = tuple[
    int,  # where the first of the chunks begins, counted from the connection's beginning
    list[bytes],  # the chunks that were read and not dealt with
    int,  # how many bytes may be sent in all, counted from the beginning
    int,  # the window of each call at first
    int,  # the largest frame that may be sent
    int,  # bytes of answers that the other end has not been given new room for
]


class Connection:
    """Methods may be called from any thread, but `read` from one at a time; all within the shield of `interrupts`.

    The shield is open while one of them waits. `gone` is called when the connection is.
    """

    def __init__(self, connected: socket.socket, interrupts: Interrupts, gone: Callable[[], NoReturn]) -> None:
        self._socket = connected
        self._interrupts = interrupts
        self._gone = gone
        self._sending = threading.RLock()  # taken once only; it knows who has it
        self._calls: dict[int, Call] = {}
        self._decoder = Decoder(0)
        settings = {
            _HEADER_TABLE_SIZE: 0,
            _ENABLE_PUSH: 0,
            _INITIAL_WINDOW_SIZE: _MAX_NUMBER,
            _MAX_FRAME_SIZE: MAX_FRAME,
        }
        greeting = (
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings.items()))
            + _frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(CONNECTION_WINDOW - _DEFAULT_WINDOW))
        )
        self._sent = [0]  # bytes that have left; their sum counts
        self._out: _Out = (1, 0, len(greeting), (greeting,), {})
        self._in: _In = (0, [], _DEFAULT_WINDOW, _DEFAULT_WINDOW, _DEFAULT_MAX_FRAME, 0)
        os.register_at_fork(after_in_child=connected.close)

    @property
    def is_sending_here(self) -> bool:
        """Whether this thread is sending, so that what asks now has broken into it."""
        return self._sending._is_owned()  # type: ignore[attr-defined,no-any-return]

    def has(self, call: Call) -> bool:
        """Whether a call was started, and has not ended."""
        return call.number < self._out[0] and self._calls.get(call.number) is call

    def start(self, call: Call, block: bytes, body: bytes) -> None:
        """Sends a request, of this header block and at least one byte, as fast as the other end takes it."""
        with self._sending:
            number, spent, end, pieces, waiting = self._out
            _, _, window, call_window, max_frame, _ = self._in
            call.number = number
            self._calls[number] = call
            head = _FRAME.pack(0, len(block), _HEADERS, _END_HEADERS, number)
            size = len(body)
            if size <= min(window - spent, call_window, max_frame, CHUNK):
                data = _FRAME.pack(size >> 8, size & 255, _DATA, _END_STREAM, number)
                piece = b"".join((head, block, data, body))
                self._out = (number + 2, spent + size, end + len(piece), (*pieces, piece), waiting)
            else:
                waiting = {**waiting, number: (memoryview(body), 0)}
                self._out = (number + 2, spent, end + len(head) + len(block), (*pieces, head + block), waiting)
                self._push()
            self._flush()

    def cancel(self, call: Call) -> None:
        """Gives a call up, unless it has ended; its `ended` is not called any more."""
        with self._sending:
            if self._reset(call, CANCEL):
                self._flush()

    def cancel_all(self) -> None:
        """Gives all calls up. Whoever reads is woken by the other end's word."""
        with self._sending:
            for call in list(self._calls.values()):
                self._reset(call, CANCEL)
            self._put(_frame(_SETTINGS, 0, 0, b""))  # which has to be acknowledged (section 6.5.3)
            self._flush()

    def read(self) -> None:
        """Waits for something, and deals with it."""
        try:
            missing = self._deal()
            if missing and not self._went_on():
                self._note(self._in[1], self._socket.recv, max(missing, READ_BYTES))
                self._deal()
        except (Http2Error, HpackError, struct.error):
            self._gone()

    def _note(self, noted: list[Any], do: Callable[[Any], Any], argument: Any) -> None:
        try:
            # Both in one call: between them, a signal handler could raise, and nobody would know what was done.
            self._interrupts.let_through(noted.extend, map(do, (argument,)))
        except OSError as error:
            if error.errno in _GONE:
                self._gone()
            raise  # a signal handler's own: TimeoutError is one, too

    # --- out: whoever holds `_sending` ---

    def _put(self, piece: bytes) -> None:
        number, spent, end, pieces, waiting = self._out
        self._out = (number, spent, end + len(piece), (*pieces, piece), waiting)

    def _flush(self) -> None:
        number, spent, end, pieces, waiting = self._out
        start = end - sum(map(len, pieces))
        for piece in pieces:
            stop = start + len(piece)
            while (sent := sum(self._sent)) < stop:
                left = memoryview(piece)[sent - start :] if sent > start else piece
                self._note(self._sent, self._socket.send, left)
            start = stop
        self._out = (number, spent, end, (), waiting)
        self._sent[:] = (end,)

    def _went_on(self) -> bool:
        """Sends what was broken off, or has got a window by now; returns whether there was any."""
        _, _, _, pieces, waiting = self._out
        if not pieces and not waiting:
            return False
        with self._sending:
            before = sum(self._sent)
            self._push()
            self._flush()
            return sum(self._sent) > before

    def _push(self) -> None:
        """Sends of what waits as much as there are windows for, of each call a piece in turn."""
        more = True
        while more:
            more = False
            for number in self._out[-1]:
                following, spent, end, pieces, waiting = self._out
                rest, gone = waiting[number]
                _, _, window, call_window, max_frame, _ = self._in
                own = call_window + sum(self._calls[number].grants.values()) - gone
                size = min(len(rest), window - spent, own, max_frame, CHUNK)
                if size <= 0:
                    continue
                piece = _frame(_DATA, _END_STREAM if size == len(rest) else 0, number, rest[:size])
                waiting = {**waiting, number: (rest[size:], gone + size)}
                if size == len(rest):
                    del waiting[number]
                self._out = (following, spent + size, end + len(piece), (*pieces, piece), waiting)
                more = True
            self._flush()

    def _reset(self, call: Call, error: int | None) -> bool:
        """Sends no more of a call and forgets it; without an error, the other end has done the same."""
        # One that was broken off before it was put out has a number that nobody has heard of, or another call's.
        if not self.has(call):
            return False
        number, spent, end, pieces, waiting = self._out
        piece = b"" if error is None else _frame(_RST_STREAM, 0, call.number, _NUMBER.pack(error))
        waiting = {other: rest for other, rest in waiting.items() if other != call.number}
        self._out = (number, spent, end + len(piece), (*pieces, piece), waiting)
        self._calls.pop(call.number, None)
        return True

    def _tell(self, piece: bytes) -> None:
        with self._sending:
            self._put(piece)
            self._flush()

    # --- in: whoever reads ---

    def _deal(self) -> int:
        """Deals with the frames that are whole; returns how many bytes are missing for one, if there was none."""
        at, chunks, window, call_window, max_frame, unreturned = self._in
        if not chunks:
            return _FRAME.size
        if not chunks[-1]:
            self._gone()
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        here, most, missing = 0, len(data), _FRAME.size
        while most - here >= _FRAME.size:
            high, low, kind, flags, number = _FRAME.unpack_from(data, here)
            start = here + _FRAME.size
            stop = start + (high << 8 | low)
            if stop - start > MAX_FRAME:
                raise Http2Error("a frame larger than was allowed")
            if stop > most:
                missing = stop - most
                break
            payload = data[start:stop]
            number &= _MAX_NUMBER
            if kind == _DATA:
                unreturned += len(payload)
                if (call := self._calls.get(number)) is not None:
                    call.pieces[at + here] = _unpadded(flags, payload)
                    if flags & _END_STREAM:
                        self._end(call, None)
            elif kind == _HEADERS:
                if not flags & _END_HEADERS:
                    raise Http2Error("a header block in pieces")  # ours are far smaller than a frame may be
                self._on_headers(number, flags, _unpadded(flags, payload))
            elif kind == _WINDOW_UPDATE and number == 0:
                window += _NUMBER.unpack(payload)[0] & _MAX_NUMBER
            elif kind == _WINDOW_UPDATE:
                if (call := self._calls.get(number)) is not None:
                    call.grants[at + here] = _NUMBER.unpack(payload)[0] & _MAX_NUMBER
            elif kind == _SETTINGS and not flags & _ACK:
                settings = dict(_SETTING.iter_unpack(payload))
                call_window = settings.get(_INITIAL_WINDOW_SIZE, call_window)
                max_frame = settings.get(_MAX_FRAME_SIZE, max_frame)
                self._tell(_frame(_SETTINGS, _ACK, 0, b""))
            else:
                self._on_other(kind, flags, number, payload)
            here = stop
        if not here:
            if len(chunks) > 1:
                self._in = (at, [data], window, call_window, max_frame, unreturned)
            return missing
        if unreturned >= CONNECTION_WINDOW // 2:
            self._tell(_frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(unreturned)))
            unreturned = 0
        rest = [data[here:]] if here < most else []
        self._in = (at + here, rest, window, call_window, max_frame, unreturned)
        return 0

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        headers: list[Header] = self._decoder.decode(payload[5:] if flags & _PRIORITIZED else payload)
        if (call := self._calls.get(number)) is not None:
            call.headers.update(headers)
            if flags & _END_STREAM:
                self._end(call, None)

    def _on_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _RST_STREAM:
            if (call := self._calls.get(number)) is not None:
                self._end(call, _NUMBER.unpack(payload)[0])
        elif kind == _PING and not flags & _ACK:
            self._tell(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            last = _NUMBER.unpack_from(payload)[0] & _MAX_NUMBER
            for call in [call for number, call in self._calls.items() if number > last]:
                self._end(call, CANCEL)
        elif kind in (_PUSH_PROMISE, _CONTINUATION):
            raise Http2Error("a push, or the continuation of nothing")
        # What is left are acknowledgements, priorities, and kinds that do not exist yet (section 5.5).

    def _end(self, call: Call, error: int | None) -> None:
        call.error = error
        call.ended(call)
        # Last, so that the end is still expected when this has to be done again.
        if call.number in self._out[-1]:
            with self._sending:
                # Answered before all was asked: the rest is not wanted (section 8.1). A reset has no answer (5.4.2).
                self._reset(call, NO_ERROR if error is None else None)
                self._flush()
        self._calls.pop(call.number, None)


def _frame(kind: int, flags: int, number: int, payload: bytes | memoryview) -> bytes:
    return b"".join((_FRAME.pack(len(payload) >> 8, len(payload) & 255, kind, flags, number), payload))


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error("more padding than there are bytes")
    return payload[1 : len(payload) - payload[0]]
