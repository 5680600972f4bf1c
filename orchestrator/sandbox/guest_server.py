"""The gRPC server of one sandbox, on its own Unix socket: the only thing that a guest can reach."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio

from orchestrator.errors import SandboxUnavailable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire
from orchestrator.sandbox.session import (
    MAX_ASKS_IN_FLIGHT,
    AskNotNow,
    AskRefused,
    GuestSession,
    TooManyAsks,
)
from orchestrator.sandbox.state_dir import SOCKET_PATH_MAX
from orchestrator.tasks import TaskSet

logger = logging.getLogger(__name__)

_READS_AT_A_TIME = 2
_READ_TIMEOUT_S = 60.0
_MAX_BYTES_IN_FLIGHT = 2 * wire.MAX_MESSAGE_BYTES

_IDENTITY_ONLY = 1  # a bitset of grpc_compression_algorithm
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    # Attach and the calls in flight.
    ("grpc.max_concurrent_streams", MAX_ASKS_IN_FLIGHT + 8),
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
        self._bytes_in_flight = 0
        self._server = grpc.aio.server(options=OPTIONS)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Attach": grpc.stream_stream_rpc_method_handler(
                self._attach,
                request_deserializer=None,  # bytes: what they hold is counted before it is built
                response_serializer=pb.AttachResponse.SerializeToString,
            ),
            "Ask": grpc.stream_unary_rpc_method_handler(
                self._ask,
                request_deserializer=None,
                response_serializer=pb.AskResponse.SerializeToString,
            ),
        }
        service = pb.DESCRIPTOR.services_by_name["GuestService"].full_name
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))

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
        # The container's user is another than ours, and connecting takes the right to write.
        self._socket.chmod(0o666)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
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
        context: grpc.aio.ServicerContext[bytes, pb.AskResponse],
    ) -> pb.AskResponse:
        self._adopt_handler()
        held = 0
        try:
            self._session.check_askable()
            request = await self._read_question(requests)
            held = len(request)
            self._bytes_in_flight += held
            if self._bytes_in_flight > _MAX_BYTES_IN_FLIGHT:
                raise TooManyAsks(f"at most {_MAX_BYTES_IN_FLIGHT:,} bytes of questions may be in flight")
            return wire.answer_message(await self._session.ask(wire.read_questions(request)))
        except (TooManyAsks, wire.TooManyQuestions) as error:
            code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except wire.BadQuestion as error:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except AskNotNow as error:
            code, text = grpc.StatusCode.FAILED_PRECONDITION, str(error)
        except AskRefused as error:
            code, text = grpc.StatusCode.CANCELLED, str(error)
        finally:
            self._bytes_in_flight -= held
        return await _refuse(context, code, text)

    async def _read_question(self, requests: AsyncIterator[bytes]) -> bytes:
        async with self._reading:
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    return await anext(aiter(requests))
            except TimeoutError:
                raise TooManyAsks(f"the question did not come within {_READ_TIMEOUT_S:g} s") from None
            except Exception as error:
                # No message at all, or bytes that are none; what gRPC raises for those is not part of its interface.
                logger.debug("a question could not be read", exc_info=error)
                raise wire.BadQuestion("there is no question") from None

    def _adopt_handler(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._handlers.adopt(task)

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        session = self._session
        try:
            async for request in requests:
                session.received(request)
                if self._named and session.usable:
                    self._named = False
                    self._socket.unlink(missing_ok=True)
        finally:
            session.stream_ended()


async def _refuse(context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort always raises")
