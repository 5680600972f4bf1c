"""One connection of a guest: bytes between a socket and `http2`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.errors import LossCause
from orchestrator.sandbox import pace
from orchestrator.sandbox.asks import MAX_ASKS_IN_FLIGHT
from orchestrator.sandbox.http2 import Connection, Stream, StreamOwner
from orchestrator.sandbox.http2_frames import Http2Error
from orchestrator.sandbox.http2_headers import Header
from orchestrator.sandbox.session import GuestSession

MAX_CONNECTIONS = 4  # of one guest
# Attach, the calls in flight, and those that the code has given up and the server has not seen the end of.
_MAX_STREAMS = 4 * MAX_ASKS_IN_FLIGHT + 8
_LONGEST_PAUSE_S = 1.0  # before something more is read, which may be the end of a cell
_READ_BYTES = 64 << 10
_WRITE_BYTES = 256 << 10  # that the kernel has not taken; above, the rest waits in its stream
_CONTROL_BYTES = 64 << 10  # of acknowledgements that a guest does not read; above, nothing more is read of it


class GuestConnection(asyncio.BufferedProtocol):
    """Reads no faster than the guest's pace allows. It knows the others of its guest: there may be a few only."""

    def __init__(
        self,
        session: GuestSession,
        all_of_them: dict[GuestConnection, None],
        begin: Callable[[GuestConnection, Stream, list[Header]], StreamOwner | None],
    ) -> None:
        self._session = session
        self._all = all_of_them
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._receiving = False
        self._full = False  # the transport takes no more just now
        self._pause: asyncio.TimerHandle | None = None
        self.carries_stream = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.http = Connection(_MAX_STREAMS, lambda stream, headers: begin(self, stream, headers))

    @property
    def closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def abort(self) -> None:
        """Ends it at once; what was not sent is not sent."""
        if self._transport is not None:
            self._transport.abort()

    def flush(self) -> None:
        """Sends what there is, as far as it is taken."""
        if self._receiving or self._transport is None:
            return
        while not self._full and (data := self.http.take()):
            self._transport.write(data)

    # --- for the event loop ---

    # Typed as what it is; other event loops' transports are no instances of asyncio's.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._session.pace.charge(pace.CALL_S)
        # One that was accepted before the end, and is told of after it, is nobody's any more.
        if self._session.over:
            transport.abort()
            return
        self._make_room()
        transport.set_write_buffer_limits(_WRITE_BYTES)
        self._transport = transport
        self._all[self] = None
        self.flush()

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._all.pop(self, None)
        if self._pause is not None:
            self._pause.cancel()
        self.http.close()
        self.closed.set_result(None)

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        frames = self.http.frames
        broken: Http2Error | None = None
        self._receiving = True  # what is sent meanwhile goes out in one piece
        try:
            self.http.receive(self._buffer[:size])
        except Http2Error as error:
            broken = error
        finally:
            self._receiving = False
        if self.carries_stream:  # what comes of the code is no sign of the agent's life
            self._session.heard()
        frames = self.http.frames - frames
        # Whatever comes of it: who breaks one connection after another would have all that came before for nothing.
        self._session.pace.charge(pace.READ_S + frames * pace.FRAME_S + size * pace.BYTE_S)
        if broken is not None:
            self._break(broken)
            return
        self.flush()
        self._slow_down()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.flush()

    def _make_room(self) -> None:
        """Ends the oldest of too many, which may be a dead worker's whose end nobody has told us of yet."""
        others = [other for other in self._all if not other.closing]
        if len(others) >= MAX_CONNECTIONS:
            next(other for other in others if not other.carries_stream).abort()

    def _slow_down(self) -> None:
        """Reads nothing for a while when the guest is above its pace, or leaves too much of ours unread."""
        wait_s = self._session.pace.wait_s()
        crowded = self.http.control_bytes > _CONTROL_BYTES
        if (wait_s <= 0 and not crowded) or self._transport is None or self._transport.is_closing():
            return
        wait_s = min(wait_s, _LONGEST_PAUSE_S)
        if wait_s > 0:
            self._session.reads_later(wait_s)
        self._transport.pause_reading()
        self._pause = self._loop.call_later(_LONGEST_PAUSE_S if crowded else wait_s, self._go_on)

    def _go_on(self) -> None:
        if self.http.control_bytes > _CONTROL_BYTES:
            self._pause = self._loop.call_later(_LONGEST_PAUSE_S, self._go_on)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _break(self, error: Http2Error) -> None:
        self.http.goodbye(error.code)
        self.flush()
        self.abort()
        if self.carries_stream:
            self._session.lose(LossCause.PROTOCOL, str(error))
