"""The gRPC server of one sandbox, on its own Unix socket: the only thing that a guest can reach."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.errors import LossCause, SandboxUnavailable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import grpc_calls, pace, wire, wire_out
from orchestrator.sandbox.asks import MAX_ASKS_IN_FLIGHT, AskNotNow, AskRefused, TooManyAsks
from orchestrator.sandbox.cell import RunningCell
from orchestrator.sandbox.grpc_calls import MessageStream, UnaryCall
from orchestrator.sandbox.http2 import Connection, Stream, StreamOwner
from orchestrator.sandbox.http2_frames import Http2Error
from orchestrator.sandbox.http2_headers import Header
from orchestrator.sandbox.session import GuestSession
from orchestrator.sandbox.state_dir import SOCKET_PATH_MAX
from orchestrator.sandbox.unread import Unread
from orchestrator.tasks import TaskSet
from orchestrator.values import Slot

logger = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["GuestService"].full_name

# Attach, the calls in flight, and those that the code has given up and the server has not seen the end of.
_MAX_STREAMS = 4 * MAX_ASKS_IN_FLIGHT + 8
_MAX_CONNECTIONS = 4
_READS_AT_A_TIME = 2  # of questions that are larger than a window
_READ_TIMEOUT_S = 60.0
_LONGEST_PAUSE_S = 1.0  # before something more is read, which may be the end of a cell
_READ_BYTES = 64 << 10
_WRITE_BYTES = 256 << 10  # that the kernel has not taken; above, the rest waits in its stream
_CONTROL_BYTES = 64 << 10  # of acknowledgements that a guest does not read; above, nothing more is read of it


class GuestServer:
    """Carries messages between one socket and one `GuestSession`. Used as a context manager.

    Once the guest has attached, the socket's name is removed and nobody listens there: code that runs later finds
    nothing to connect to.
    """

    def __init__(self, session: GuestSession, socket: Path) -> None:
        self._session = session
        self._path = socket
        self._listener: asyncio.Server | None = None
        self._connections: set[_GuestConnection] = set()
        self._handlers = TaskSet()
        self._reading = asyncio.Semaphore(_READS_AT_A_TIME)
        self._unread = Unread(self._not_read)

    async def __aenter__(self) -> GuestServer:
        path = os.fsencode(self._path)
        if len(path) > SOCKET_PATH_MAX:
            raise SandboxUnavailable(
                f"a socket's path is longer than {SOCKET_PATH_MAX} bytes.", "Shorten RLM_STATE_DIR."
            )
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(path)
            # The container's user is another than ours, and connecting takes the right to write.
            self._path.chmod(0o666)
            bound.listen(_MAX_CONNECTIONS)
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_unix_server(self._connection, sock=bound)
        except OSError as error:
            bound.close()
            raise SandboxUnavailable(f"no socket could be opened at {self._path}: {error}.") from error
        except BaseException:
            bound.close()
            raise
        self._session.when_failed(self._hang_up)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._unread.close()
        self._hang_up()
        if self._connections:
            await asyncio.wait([connection.closed for connection in self._connections])
        await self._handlers.close()

    def _connection(self) -> asyncio.BaseProtocol:
        return _GuestConnection(self._session, self._connections, self._begin)

    def _hang_up(self) -> None:
        """Nothing more is taken of the guest, and nothing held for it, whenever its owner comes to close it."""
        self._stop_listening()
        for connection in tuple(self._connections):
            connection.abort()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _begin(self, connection: _GuestConnection, stream: Stream, headers: list[Header]) -> StreamOwner | None:
        """A call, and who is told the rest of it; None when it is refused."""
        self._session.pace.charge(pace.CALL_S)
        http = connection.http
        match grpc_calls.path_of(headers):
            case None:
                grpc_calls.refuse_what_is_no_call(http, stream)
            case path if path == f"/{_SERVICE}/Ask":
                call = UnaryCall(http, connection.flush, stream, wire.MAX_MESSAGE_BYTES)
                call.handler = self._handlers.spawn(self._ask(call), f"{self._session.name}: a question")
                return call
            case path if path == f"/{_SERVICE}/Attach":
                return self._attach(connection, stream)
            case _:
                grpc_calls.refuse(http, stream, grpc_calls.UNIMPLEMENTED, "there is no such method")
        return None

    def _attach(self, connection: _GuestConnection, stream: Stream) -> StreamOwner | None:
        session = self._session
        if not session.expects_stream:
            text = "there is one stream per sandbox"
            grpc_calls.refuse(connection.http, stream, grpc_calls.FAILED_PRECONDITION, text)
            return None
        connection.carries_stream = True
        messages = MessageStream(
            connection.http,
            connection.flush,
            stream,
            wire.MAX_MESSAGE_BYTES,
            self._received,
            session.stream_ended,
            lambda text: session.lose(LossCause.PROTOCOL, text),
        )
        session.stream_began(messages)
        return messages

    def _received(self, message: bytes) -> None:
        session = self._session
        session.received(message)
        if self._listener is not None and session.usable:
            self._path.unlink(missing_ok=True)
            self._stop_listening()

    async def _ask(self, call: UnaryCall) -> None:
        session = self._session
        handler = call.handler
        assert handler is not None
        try:
            cell = session.askable()
            with cell.asks.call() as place:
                call.given_up = place.give_up
                # Most questions are here already; a guest within its pace may ask them at once.
                request = call.arrived() if session.pace.wait_s() <= 0 and cell.asks.has_room else None
                if request is None:
                    with cell.asks.waiting(handler):
                        request = await self._read_question(call, cell)
                        await cell.asks.room()
                batch = wire.read_questions(request)
                session.pace.charge(len(batch.questions) * pace.QUESTION_S)
                size = len(request)
                del request
                slots = await session.ask(cell, place, batch, size)
            await self._answer(call, slots, handler, cell)
            return
        except (TooManyAsks, wire.TooManyQuestions) as error:
            status, text = grpc_calls.RESOURCE_EXHAUSTED, str(error)
        except wire.BadQuestion as error:
            status, text = grpc_calls.INVALID_ARGUMENT, str(error)
        except grpc_calls.BadMessage as error:
            status, text = error.status, str(error)
        except AskNotNow as error:
            status, text = grpc_calls.FAILED_PRECONDITION, str(error)
        except AskRefused as error:
            status, text = grpc_calls.CANCELLED, str(error)
        except Exception:
            # The guest learns nothing of what went wrong here.
            logger.exception("a question could not be answered")
            status, text = grpc_calls.INTERNAL, "the host could not answer"
        except BaseException:
            # Whatever ends this task, and whoever cancels it: the guest does not wait for what nobody works at.
            call.refuse(grpc_calls.CANCELLED, "the call has ended")
            raise
        if status != grpc_calls.CANCELLED:
            session.pace.charge_refused()
        call.refuse(status, text)

    async def _read_question(self, call: UnaryCall, cell: RunningCell) -> bytes:
        async with self._reading:
            await cell.asks.room()
            await self._within_pace(cell)
            while True:
                try:
                    async with asyncio.timeout(_READ_TIMEOUT_S):
                        return await call.read()
                except TimeoutError:
                    # Above its pace, it is the host that does not read: the guest may have sent it long ago.
                    if self._session.pace.wait_s() <= 0:
                        raise TooManyAsks(f"the question did not come within {_READ_TIMEOUT_S:g} s") from None

    async def _within_pace(self, cell: RunningCell) -> None:
        while (wait_s := self._session.pace.wait_s()) > 0:
            with cell.asks.held_up():
                await asyncio.sleep(wait_s)

    async def _answer(
        self, call: UnaryCall, slots: Sequence[Slot], handler: asyncio.Task[None], cell: RunningCell
    ) -> None:
        wanted = wire_out.least_size(slots)
        if self._session.pace.wait_s() > 0 or not self._unread.fits(wanted):
            with cell.asks.waiting(handler):
                await self._within_pace(cell)
                await self._unread.room(wanted)
        pieces = wire_out.answer_pieces(slots)
        size = sum(map(len, pieces))
        self._session.pace.charge(size * pace.BYTE_S)
        if not call.answer(pieces):
            self._unread.add(size, handler)
            await call.left()

    def _not_read(self) -> None:
        self._session.lose(LossCause.UNRESPONSIVE, "the guest does not read what it is answered")


class _GuestConnection(asyncio.BufferedProtocol):
    """One connection of the guest: bytes between a socket and `http2`, no faster than its pace allows."""

    def __init__(
        self,
        session: GuestSession,
        all_of_them: set[_GuestConnection],
        begin: Callable[[_GuestConnection, Stream, list[Header]], StreamOwner | None],
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._session.pace.charge(pace.CALL_S)
        # One that was accepted before the end, and is told of after it, is nobody's any more.
        if len(self._all) >= _MAX_CONNECTIONS or self._session.over:
            transport.abort()
            return
        transport.set_write_buffer_limits(_WRITE_BYTES)
        self._transport = transport
        self._all.add(self)
        self.flush()

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._all.discard(self)
        if self._pause is not None:
            self._pause.cancel()
        self.http.close()
        self.closed.set_result(None)

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        frames = self.http.frames
        self._session.heard()
        self._receiving = True  # what is sent meanwhile goes out in one piece
        try:
            self.http.receive(self._buffer[:size])
        except Http2Error as error:
            self._receiving = False
            self._break(error)
            return
        finally:
            self._receiving = False
        frames = self.http.frames - frames
        self._session.pace.charge(pace.READ_S + frames * pace.FRAME_S + size * pace.BYTE_S)
        self.flush()
        self._slow_down()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.flush()

    def _slow_down(self) -> None:
        """Reads nothing for a while when the guest is above its pace, or leaves too much of ours unread."""
        wait_s = min(self._session.pace.wait_s(), _LONGEST_PAUSE_S)
        if self.http.control_bytes > _CONTROL_BYTES:
            wait_s = _LONGEST_PAUSE_S
        if wait_s > 0 and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._pause = self._loop.call_later(wait_s, self._go_on)

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
