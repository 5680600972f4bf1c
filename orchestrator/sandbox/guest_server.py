"""The gRPC server of one sandbox, on its own Unix socket: the only thing that a guest can reach."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio

from orchestrator.errors import LossCause, SandboxUnavailable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import pace, wire, wire_out
from orchestrator.sandbox.asks import MAX_ASKS_IN_FLIGHT, AskNotNow, AskRefused, TooManyAsks
from orchestrator.sandbox.cell import RunningCell
from orchestrator.sandbox.session import GuestSession
from orchestrator.sandbox.state_dir import SOCKET_PATH_MAX
from orchestrator.sandbox.unread import Unread
from orchestrator.tasks import TaskSet
from orchestrator.values import Slot

logger = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["GuestService"].full_name

_READS_AT_A_TIME = 2
_READ_TIMEOUT_S = 60.0
_LONGEST_PAUSE_S = 1.0  # before the next message of the stream, which may be the end of a cell

_IDENTITY_ONLY = 1  # a bitset of grpc_compression_algorithm
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    # Attach, the calls in flight, and those that the code has given up and the server has not seen the end of.
    ("grpc.max_concurrent_streams", 4 * MAX_ASKS_IN_FLIGHT + 8),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # A kilobyte that unpacks to gigabytes is refused before it is unpacked.
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
    ("grpc.max_allowed_incoming_connections", 4),
    ("grpc.so_reuseport", 0),
    # What is held of a message that nobody reads yet; without the probe it would grow with the sender's speed.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 64 * 1024),
)


def _is_no_hanging_up(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(f"ExecuteBatchError raised in core by servicer method [/{_SERVICE}/")


# A guest that hangs up while it is answered is no error of ours, and must not be able to fill a log with tracebacks.
logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_hanging_up)


class GuestServer:
    """Carries messages between one socket and one `GuestSession`. Used as a context manager.

    The socket's name is removed when the guest has attached: code that runs later finds nothing to connect to.

    `Ask` has one request on the wire, but is served as a stream of requests: gRPC would otherwise receive the whole of
    it before any code of ours runs, and as many at a time as there are streams (measured: gigabytes). So one that
    cannot be answered now is refused unread, and few are read at a time.
    """

    def __init__(self, session: GuestSession, socket: Path) -> None:
        self._session = session
        self._socket = socket
        self._named = True
        self._handlers = TaskSet()
        self._reading = asyncio.Semaphore(_READS_AT_A_TIME)
        self._unread = Unread(self._not_read)
        self._server = grpc.aio.server(options=OPTIONS)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{_SERVICE}/Attach": grpc.stream_stream_rpc_method_handler(
                self._attach,
                request_deserializer=None,  # bytes: what they hold is counted before it is built
                response_serializer=pb.AttachResponse.SerializeToString,
            ),
            f"/{_SERVICE}/Ask": grpc.stream_unary_rpc_method_handler(
                self._ask,
                request_deserializer=None,
                response_serializer=None,  # bytes: what they take is counted before they are built
            ),
        }
        self._server.add_generic_rpc_handlers((_Methods(methods, self._begun),))

    async def __aenter__(self) -> GuestServer:
        path = os.fsencode(self._socket)
        if len(path) > SOCKET_PATH_MAX:
            raise SandboxUnavailable(
                f"a socket's path is longer than {SOCKET_PATH_MAX} bytes.", "Shorten RLM_STATE_DIR."
            )
        try:
            self._server.add_insecure_port(f"unix:{self._socket}")
            await self._server.start()
        except RuntimeError as error:
            raise SandboxUnavailable(f"no socket could be opened at {self._socket}: {error}.") from error
        except BaseException:
            await self._server.stop(None)  # cancelled as it started: who collects it later may have no loop any more
            raise
        # The container's user is another than ours, and connecting takes the right to write.
        self._socket.chmod(0o666)
        self._session.when_failed(self._end)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._unread.close()
        await self._server.stop(None)
        await self._handlers.close()

    async def _attach(
        self,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, pb.AttachResponse],
    ) -> None:
        self._adopt_handler()
        session = self._session
        if not session.stream_began():
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "there is one stream per sandbox")
        reader = self._handlers.spawn(self._read(requests), f"{session.name}: reading")
        try:
            while (message := await session.outbox.get()) is not None:
                await context.write(message)
        finally:
            reader.cancel()
            session.stream_ended()

    async def _ask(
        self,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> bytes:
        handler = self._adopt_handler()
        session = self._session
        try:
            cell = session.askable()
            with cell.asks.call():
                with cell.asks.waiting(handler):
                    request = await self._read_question(context, cell)
                session.charge(len(request) * pace.BYTE_S)
                batch = wire.read_questions(request)
                session.charge(len(batch.questions) * pace.QUESTION_S)
                size = len(request)
                del request
                slots = await session.ask(cell, batch, size)
            return await self._answer(slots, handler, cell)
        except (TooManyAsks, wire.TooManyQuestions) as error:
            code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except wire.BadQuestion as error:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except AskNotNow as error:
            code, text = grpc.StatusCode.FAILED_PRECONDITION, str(error)
        except AskRefused as error:
            code, text = grpc.StatusCode.CANCELLED, str(error)
        except Exception:
            # gRPC would tell the guest of it in its own words, and ours.
            logger.exception("a question could not be answered")
            code, text = grpc.StatusCode.INTERNAL, "the host could not answer"
        if code is not grpc.StatusCode.CANCELLED:
            session.charge(pace.REFUSED_S)
        return await _refuse(context, code, text)

    async def _read_question(self, context: grpc.aio.ServicerContext[bytes, bytes], cell: RunningCell) -> bytes:
        async with self._reading:
            await cell.asks.room()
            while (wait_s := self._session.wait_s()) > 0:
                cell.asks.excuse(wait_s)
                await asyncio.sleep(wait_s)
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    # Not the iterator that gRPC hands over: one that is not read to its end costs a task to close.
                    request: Any = await context.read()
            except TimeoutError:
                raise TooManyAsks(f"the question did not come within {_READ_TIMEOUT_S:g} s") from None
            except Exception as error:
                # No message at all, or bytes that are none; what gRPC raises for those is not part of its interface.
                logger.debug("a question could not be read", exc_info=error)
                raise wire.BadQuestion("there is no question") from None
        if not isinstance(request, bytes):  # the end of the call
            raise wire.BadQuestion("there is no question")
        return request

    async def _answer(self, slots: Sequence[Slot], handler: asyncio.Task[Any], cell: RunningCell) -> bytes:
        pieces = wire_out.answer_pieces(slots)
        size = sum(map(len, pieces))
        self._session.charge(size * pace.BYTE_S)
        if not self._unread.fits(size):
            with cell.asks.waiting(handler):
                await self._unread.room(size)
        self._unread.add(size, handler)  # which ends when gRPC has sent it
        return b"".join(pieces)

    def _begun(self) -> None:
        self._session.charge(pace.CALL_S)

    def _not_read(self) -> None:
        self._session.lose(LossCause.UNRESPONSIVE, "the guest does not read what it is answered")

    def _end(self) -> None:
        """Lost: nothing more is taken of it, and nothing held for it, whenever its owner comes to close it."""
        self._handlers.spawn(self._server.stop(None), f"{self._session.name}: stopping")

    def _adopt_handler(self) -> asyncio.Task[Any]:
        task = asyncio.current_task()
        assert task is not None, "gRPC makes a task of each call"
        self._handlers.adopt(task)
        return task

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        session = self._session
        try:
            async for request in requests:
                session.received(request)
                if self._named and session.usable:
                    self._named = False
                    self._socket.unlink(missing_ok=True)
                if (wait_s := session.wait_s()) > 0:
                    await asyncio.sleep(min(wait_s, _LONGEST_PAUSE_S))
        finally:
            session.stream_ended()


class _Methods(grpc.GenericRpcHandler):
    """Counts each call, also one that is reset before any code of a method runs."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler[Any, Any]], begun: Callable[[], None]) -> None:
        self._methods = methods
        self._begun = begun

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        self._begun()
        return self._methods.get(handler_call_details.method)


async def _refuse(context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort always raises")
