"""gRPC over HTTP/2, as the client of a stream: a channel on a connected socket, and the calls on it.

The wire is that of the gRPC project ("gRPC over HTTP2"). Why not its own client: docs/decisions/0018.
"""

from __future__ import annotations

from agent_http2 import CHUNK, Connection, Http2Error
from guest_grpc import INTERNAL, MESSAGE_CAP, PREFIX, STATUS_OF_RESET, UNKNOWN, request_headers, status_of, unquoted

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Sequence

    from agent_http2 import Stream
    from agent_loop import Loop
    from guest_hpack import Header

    OnMessage = Callable[[bytes], None]
    OnEnd = Callable[[int, str], None]

READ_BYTES = 256 << 10


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

    def send(self, message: bytes) -> None:
        """Sends a message."""
        prefix = PREFIX.pack(0, len(message))
        self._channel.send(self, (prefix + message,) if len(message) < CHUNK else (prefix, message))

    def headers(self, headers: list[Header]) -> None:
        """See `agent_http2.StreamOwner`."""
        for name, value in headers:
            if name == b":status" and value != b"200":
                self._status, self._details = UNKNOWN, f"HTTP status {value.decode('ascii', 'replace')}"
            elif name == b"grpc-status":
                self._status = status_of(value)
            elif name == b"grpc-message":
                self._details = unquoted(value)

    def data(self, data: memoryview) -> None:
        """See `agent_http2.StreamOwner`."""
        if not self._buffer and _is_one_message(data):
            self._on_message(bytes(data[PREFIX.size :]))
            return
        self._buffer += data
        while len(self._buffer) >= PREFIX.size:
            compressed, length = PREFIX.unpack_from(self._buffer)
            if compressed or length > MESSAGE_CAP:
                raise Http2Error("a message that is compressed, or too large")
            end = PREFIX.size + length
            if len(self._buffer) < end:
                return
            message = bytes(memoryview(self._buffer)[PREFIX.size : end])
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
            self._on_end(STATUS_OF_RESET.get(error, INTERNAL), "the call was reset")


class Channel:
    """A connected socket and the calls on it. `on_broken` is told why it is of no more use; its calls end first."""

    def __init__(self, loop: Loop, connected: _socket.socket, on_broken: Callable[[str], None]) -> None:
        connected.setblocking(False)
        self._loop = loop
        self._socket = connected
        self._on_broken = on_broken
        self._connection = Connection()
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
        call.stream = self._connection.request(request_headers(path), call)
        return call

    def send(self, call: Call, pieces: Sequence[bytes]) -> None:
        """For calls of this channel."""
        if call.stream is not None:
            self._connection.send(call.stream, *pieces)
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


def _is_one_message(data: memoryview) -> bool:
    """Whether it is a whole message and nothing else, as a frame mostly is: no frame is too large for a message."""
    return len(data) >= PREFIX.size and PREFIX.unpack_from(data) == (0, len(data) - PREFIX.size)
