"""gRPC over HTTP/2, as a client of two methods: a channel on a connected socket, and the calls on it.

The wire is that of the gRPC project ("gRPC over HTTP2"). Why not its own client: docs/decisions/0018.
"""

from __future__ import annotations

import _socket
import struct
import time

from agent_hpack import literal
from agent_http2 import CHUNK, Connection, Http2Error

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_hpack import Header
    from agent_http2 import Stream
    from agent_loop import Loop

    OnMessage = Callable[[bytes], None]
    OnEnd = Callable[[int, str], None]

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 0, 1, 2, 3, 8, 13, 14
MESSAGE_CAP = 64 << 20  # bytes
READ_BYTES = 256 << 10
_RETRY_S = 0.02
_PREFIX = struct.Struct("!BI")
_STATUS_OF_RESET = {0x7: UNAVAILABLE, 0x8: CANCELLED, 0xB: RESOURCE_EXHAUSTED}


def dial(address: str, timeout_s: float) -> _socket.socket:
    """Connects to `unix:path`, or `host:port`; tries again until somebody listens.

    Raises:
        TimeoutError: nobody does.
        ValueError: this is no address.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _connect(address, max(0.001, deadline - time.monotonic()))
        except OSError:
            # The host may listen a moment after the container starts.
            if time.monotonic() + _RETRY_S > deadline:
                raise TimeoutError(f"nobody listens at {address}") from None
        time.sleep(_RETRY_S)


def _connect(address: str, timeout_s: float) -> _socket.socket:
    if not address.startswith("unix:"):
        import socket  # with names and the rest of TCP

        host, separator, port = address.removeprefix("dns:").lstrip("/").rpartition(":")
        if not separator or not port.isdigit():
            raise ValueError(f"{address!r} is neither unix:path nor host:port")
        connected: _socket.socket = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    connected = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout_s)
        connected.connect(address.removeprefix("unix:").removeprefix("//"))
    except BaseException:
        connected.close()
        raise
    return connected


class Call:
    """One call of a method. `on_message` is told each message of the other end, `on_end` the status, once, at last."""

    def __init__(self, channel: Channel, on_message: OnMessage, on_end: OnEnd) -> None:
        self._channel = channel
        self._on_message = on_message
        self._on_end = on_end
        self._buffer = bytearray()
        self._status: int | None = None
        self._details = ""
        self.stream: Stream | None = None

    def send(self, message: bytes, *, last: bool = False) -> None:
        """Sends a message; `last` when none follows."""
        prefix = _PREFIX.pack(0, len(message))
        self._channel.send(self, (prefix + message,) if len(message) < CHUNK else (prefix, message), last)

    def cancel(self) -> None:
        """Ends the call, and tells nobody here of it."""
        self._channel.cancel(self)

    def headers(self, headers: list[Header]) -> None:
        """See `agent_http2.StreamOwner`."""
        for name, value in headers:
            if name == b":status" and value != b"200":
                self._status, self._details = UNKNOWN, f"HTTP status {value.decode('ascii', 'replace')}"
            elif name == b"grpc-status":
                self._status = int(value) if value.isdigit() else UNKNOWN
            elif name == b"grpc-message":
                self._details = _unquoted(value)

    def data(self, data: memoryview) -> None:
        """See `agent_http2.StreamOwner`."""
        if not self._buffer and _is_one_message(data):
            self._on_message(bytes(data[_PREFIX.size :]))
            return
        self._buffer += data
        while len(self._buffer) >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(self._buffer)
            if compressed or length > MESSAGE_CAP:
                raise Http2Error("a message that is compressed, or too large")
            end = _PREFIX.size + length
            if len(self._buffer) < end:
                return
            message = bytes(memoryview(self._buffer)[_PREFIX.size : end])
            del self._buffer[:end]
            self._on_message(message)

    def ended(self, error: int | None) -> None:
        """See `agent_http2.StreamOwner`."""
        self.stream = None  # which knows this call: a circle would be left to the garbage collector
        if self._status is not None:
            self._on_end(self._status, self._details)
        elif error is None:
            self._on_end(UNKNOWN, "the call ended without a status")
        else:
            self._on_end(_STATUS_OF_RESET.get(error, INTERNAL), "the call was reset")


class Channel:
    """A connected socket and the calls on it. `on_broken` is told why it is of no more use; its calls end first."""

    def __init__(self, loop: Loop, connected: _socket.socket, on_broken: Callable[[str], None]) -> None:
        connected.setblocking(False)
        self._loop = loop
        self._socket = connected
        self._on_broken = on_broken
        self._connection = Connection()
        self._headers: dict[str, bytes] = {}  # of a request, by its path
        self._buffer = memoryview(bytearray(READ_BYTES))  # made once: a large one costs more than what it is for
        self._unsent: bytes | bytearray = b""
        self._writing = False
        self._receiving = False
        self._open = True
        loop.add_reader(connected, self._read)

    @property
    def greeted(self) -> bool:
        """Whether the other end has said anything that is HTTP/2."""
        return self._connection.greeted

    def call(self, path: str, on_message: OnMessage, on_end: OnEnd) -> Call:
        """Begins a call of a method, `/package.Service/Method`."""
        call = Call(self, on_message, on_end)
        if (headers := self._headers.get(path)) is None:
            headers = self._headers[path] = _request_headers(path)
        call.stream = self._connection.request(headers, call)
        return call

    def send(self, call: Call, pieces: Sequence[bytes], last: bool) -> None:
        """For calls of this channel."""
        if call.stream is not None:
            self._connection.send(call.stream, *pieces, last=last)
            self._flush()

    def cancel(self, call: Call) -> None:
        """For calls of this channel."""
        if call.stream is not None:
            self._connection.reset(call.stream)
            call.stream = None
            self._flush()

    def _read(self) -> None:
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._break("the host has hung up")
            return
        self._receiving = True  # what is sent meanwhile goes out in one piece
        try:
            self._connection.receive(self._buffer[:size])
        except Http2Error as error:
            self._break(str(error))
            return
        finally:
            self._receiving = False
        self._flush()

    def _flush(self) -> None:
        if self._receiving or not self._open:
            return
        while data := self._unsent or self._connection.take():
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = len(data)  # it is gone: its end is seen by reading
            self._unsent = data[sent:]
            if self._unsent:
                break
        if bool(self._unsent) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._socket, self._flush)
            else:
                self._loop.remove_writer(self._socket)

    def _break(self, reason: str) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._connection.close()
            self._on_broken(reason)


def _unquoted(value: bytes) -> str:
    """A status message, in which what is no printable ASCII is percent-encoded; what is no such code is left."""
    first, *rest = value.split(b"%")
    plain = bytearray(first)
    for piece in rest:
        try:
            plain += bytes.fromhex(piece[:2].decode("ascii")) + piece[2:] if len(piece) > 1 else b"%" + piece
        except ValueError:
            plain += b"%" + piece
    return plain.decode("utf-8", "replace")


def _is_one_message(data: memoryview) -> bool:
    """Whether it is a whole message and nothing else, as a frame mostly is: no frame is too large for a message."""
    return len(data) >= _PREFIX.size and _PREFIX.unpack_from(data) == (0, len(data) - _PREFIX.size)


def _request_headers(path: str) -> bytes:
    # The two bytes are ":method: POST" and ":scheme: http" of the static table.
    return b"\x83\x86" + b"".join(
        literal(name, value)
        for name, value in (
            (b":path", path.encode("ascii")),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"rlm-agent/1"),
        )
    )
