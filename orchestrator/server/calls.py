"""What surrounds every call: who calls, how an error looks outside, one line in the log, and an end that is awaited."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from orchestrator.errors import InvalidInput, RLMError, ServiceFailed, ServiceFailure
from orchestrator.hosting.principals import Principal
from orchestrator.server.tokens import Tokens
from orchestrator.wire.statuses import status_of

logger = logging.getLogger(__name__)
access = logging.getLogger("orchestrator.server.access")

ADMIN = Principal("admin", admin=True)
DETAILS_KEY = "grpc-status-details-bin"
_OPEN_TO_ALL = "/grpc.health.v1.Health/"  # a load balancer has no token
_SCHEME = "bearer "
_CODES = {code.value[0]: code for code in grpc.StatusCode}

# Set by the guard and read by the handler that it calls, in the same task.
_caller: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Who makes the call that is being handled."""
    return _caller.get()


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler. `tokens` None: whoever reaches the server is its admin.

    On its Unix socket the file's mode decides who may call, so a caller without a token is the admin there.
    """

    def __init__(self, tokens: Tokens | None) -> None:
        self.tokens = tokens
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancels and awaits all calls: `grpc.aio.Server.stop` awaits none of them (grpc#37239)."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(tuple(self._tasks))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC says UNIMPLEMENTED
        method = handler_call_details.method
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                make, inner = grpc.unary_unary_rpc_method_handler, handler.unary_unary
            case True, False:
                make, inner = grpc.stream_unary_rpc_method_handler, handler.stream_unary
            case False, True:
                make, inner = grpc.unary_stream_rpc_method_handler, handler.unary_stream
            case _:
                make, inner = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        # The stubs know gRPC's synchronous handlers only.
        # Messages are decoded within the call: gRPC would answer UNKNOWN for bytes that are none, and ask no token.
        called: Any = inner
        read = _reader(handler.request_deserializer, many=handler.request_streaming)
        wrap = self._streaming if inspect.isasyncgenfunction(called) else self._plain
        run: Any = wrap(method, lambda request, context: called(read(request), context))
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(run, response_serializer=handler.response_serializer)
        return wrapped

    def _plain(self, method: str, inner: Any) -> Any:
        async def run(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with self._call(method, context):
                return await inner(request, context)

        return run

    def _streaming(self, method: str, inner: Any) -> Any:
        async def run(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            # Written from here: gRPC would leave the generator unclosed when the call is cancelled between two items.
            async with self._call(method, context), aclosing(inner(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

        return run

    @asynccontextmanager
    async def _call(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        started = time.monotonic()
        code, name = "CANCELLED", "-"
        try:
            principal = self._principal(method, context)
            name = principal.name
            _caller.set(principal)
            yield
            code = "OK"
        except RLMError as error:
            status = status_of(error)
            code = _CODES[status.code].name
            await _abort(context, status)
        except grpc.aio.AbortError:
            code = "ABORTED"  # by a handler that is not ours: health, reflection
            raise
        except Exception:
            # What an exception of ours says may name paths and values: it stays in the log.
            identifier = secrets.token_hex(4)
            logger.exception("the call %s failed, error id %s", method, identifier)
            code = grpc.StatusCode.INTERNAL.name
            told = f"an error of the server's own (id {identifier})."
            await _abort(context, status_of(ServiceFailed(ServiceFailure.INTERNAL, told, "Its log says more.")))
        finally:
            self._tasks.discard(task)
            access.info(
                "%s %s %s %s %.3f s", context.peer().partition(":")[0], name, method, code, time.monotonic() - started
            )

    def _principal(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Principal:
        if method.startswith(_OPEN_TO_ALL):
            return Principal("-")
        given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if not given and (self.tokens is None or context.peer().startswith("unix:")):
            return ADMIN
        if self.tokens is None:
            return ADMIN  # a token that nobody asked for
        text = given[0] if len(given) == 1 else ""
        text = text.decode("ascii", "replace") if isinstance(text, bytes) else text
        if not text.lower().startswith(_SCHEME):
            raise ServiceFailed(
                ServiceFailure.UNAUTHENTICATED,
                "this server asks for a token.",
                "Send the metadata `authorization: Bearer TOKEN`; for the command, set RLM_TOKEN.",
            )
        principal = self.tokens.principal_of(text[len(_SCHEME) :].strip())
        if principal is None:
            raise ServiceFailed(
                ServiceFailure.UNAUTHENTICATED, "the token is not one of this server's.", "Ask its owner for one."
            )
        return principal


def _reader(decode: Callable[[bytes], Any] | None, *, many: bool) -> Callable[[Any], Any]:
    def one(data: bytes) -> Any:
        try:
            return data if decode is None else decode(data)
        except DecodeError:
            raise InvalidInput("request", "is not a message of this call.", "Use this release's protos.") from None

    async def each(parts: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in parts:
            yield one(data)

    return each if many else one


async def _abort(context: grpc.aio.ServicerContext[Any, Any], status: Status) -> None:
    """Raises gRPC's own exception, which has to reach gRPC."""
    await context.abort(_CODES[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))


def trace_context(context: Any) -> dict[str, str]:
    """The caller's W3C trace context, from the call's metadata."""
    found = {key: value for key, value in context.invocation_metadata() or () if key in ("traceparent", "tracestate")}
    return {key: value for key, value in found.items() if isinstance(value, str)}
