"""The gRPC server of one sandbox, on its own Unix socket: the only thing that a guest can reach."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import LossCause, SandboxUnavailable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import grpc_calls, pace, wire, wire_out
from orchestrator.sandbox.asks import AskNotNow, AskRefused, TooManyAsks
from orchestrator.sandbox.cell import RunningCell
from orchestrator.sandbox.grpc_calls import MessageStream, UnaryCall
from orchestrator.sandbox.guest_connection import MAX_CONNECTIONS, GuestConnection
from orchestrator.sandbox.http2 import Stream, StreamOwner
from orchestrator.sandbox.http2_headers import Header
from orchestrator.sandbox.session import GuestSession
from orchestrator.sandbox.state_dir import SOCKET_PATH_MAX
from orchestrator.sandbox.unread import Unread
from orchestrator.tasks import TaskSet
from orchestrator.values import Slot

logger = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["GuestService"].full_name

_READS_AT_A_TIME = 2  # of questions that are larger than a window
_READ_TIMEOUT_S = 60.0


class GuestServer:
    """Carries messages between one socket and one `GuestSession`. Used as a context manager.

    One connection carries the stream, and is the agent's. All others are the code's: what becomes of those is no
    matter of the sandbox's life.
    """

    def __init__(self, session: GuestSession, socket: Path) -> None:
        self._session = session
        self._path = socket
        self._listener: asyncio.Server | None = None
        self._connections: dict[GuestConnection, None] = {}  # the oldest first
        self._handlers = TaskSet()
        self._reading = asyncio.Semaphore(_READS_AT_A_TIME)
        self._unread = Unread(self._not_read)
        self._headers: list[Header] = []  # of the last call, which are mostly those of the next
        self._method: str | None = None

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
            loop = asyncio.get_running_loop()
            # So many are accepted in a turn of the loop at most.
            self._listener = await loop.create_unix_server(self._connection, sock=bound, backlog=MAX_CONNECTIONS)
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
        return GuestConnection(self._session, self._connections, self._begin)

    def _hang_up(self) -> None:
        """Nothing more is taken of the guest, and nothing held for it, whenever its owner comes to close it."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in tuple(self._connections):
            connection.abort()

    def _begin(self, connection: GuestConnection, stream: Stream, headers: list[Header]) -> StreamOwner | None:
        """A call, and who is told the rest of it; None when it is refused."""
        self._session.pace.charge(pace.CALL_S)
        http = connection.http
        if headers is not self._headers:
            self._headers, self._method = headers, grpc_calls.path_of(headers)
        match self._method:
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

    def _attach(self, connection: GuestConnection, stream: Stream) -> StreamOwner | None:
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
            session.received,
            session.stream_ended,
            lambda text: session.lose(LossCause.PROTOCOL, text),
        )
        session.stream_began(messages)
        return messages

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
                slots = await cell.ask(place, batch, size)
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
            with cell.waits.paused():
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
        has_left = call.answer(pieces)
        del pieces  # which may be large, and are in the message: they must not be held until it has left
        if not has_left:
            self._unread.add(size, handler)
            await call.left()

    def _not_read(self, handler: asyncio.Task[None]) -> None:
        # Of one that is hostile, or of code that lets no other thread run: its call is over, and nothing else.
        logger.info("%s: an answer was not read, and is dropped", self._session.name)
        self._session.pace.charge_refused()
        handler.cancel()
