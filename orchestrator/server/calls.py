"""What surrounds every call: who calls, how an error looks outside, one line in the log, and an end that is awaited."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from orchestrator.errors import InvalidInput, RLMError, ServiceFailed, ServiceFailure
from orchestrator.hosting.principals import Principal
from orchestrator.server.tokens import ADMIN_NAME, Tokens
from orchestrator.wire.statuses import status_of

logger = logging.getLogger(__name__)
access = logging.getLogger("orchestrator.server.access")

ADMIN = Principal(ADMIN_NAME, admin=True)
_ANYBODY = Principal("-")
DETAILS_KEY = "grpc-status-details-bin"
_OPEN_TO_ALL = "/grpc.health.v1.Health/"  # a load balancer has no token
_SCHEME = "bearer "
_CODES = {code.value[0]: code for code in grpc.StatusCode}

# Set by the guard and read by the handler that it calls, in the same task.
_caller: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Who makes the call that is being handled."""
    return _caller.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCaps:
    """Calls at a time. What nobody has to show a token for is capped apart, and so is each caller: no one of them can
    take the places of all."""

    each: int | None = None  # of one principal
    open_to_all: int = 64  # that need no token, together
    first_message_s: float = 30.0  # for a request to come whole
    open_first_message_s: float = 5.0


class Guard:
    """Wraps every handler. `tokens` None: whoever reaches the server is its admin.

    On its Unix socket the file's mode decides who may call, so a caller without a token is the admin there.
    """

    def __init__(self, tokens: Tokens | None, caps: CallCaps | None = None) -> None:
        self.tokens = tokens
        self.caps = caps or CallCaps()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    def door(self, *, local: bool) -> Door:
        """For one server; `local` for that of the Unix socket."""
        return Door(self, local)

    async def close(self) -> None:
        """Cancels and awaits all calls: `grpc.aio.Server.stop` awaits none of them (grpc#37239)."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(tuple(self._tasks))

    def principal_of(self, method: str, metadata: Iterable[tuple[str, str | bytes]], local: bool) -> Principal:
        """Raises `ServiceFailed`."""
        if method.startswith(_OPEN_TO_ALL):
            return _ANYBODY
        given = [value for key, value in metadata if key == "authorization"]
        if self.tokens is None or (not given and local):
            return ADMIN  # also with a token that nobody asked for
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

    @contextmanager
    def place(self, principal: Principal, local: bool) -> Iterator[None]:
        """Raises `ServiceFailed` when it has all of its own."""
        if local and principal in (ADMIN, _ANYBODY):
            yield  # whoever reaches the socket: its health check must not wait for what comes to a port
            return
        most = self.caps.open_to_all if principal is _ANYBODY else self.caps.each
        if most is not None and self._calls[principal.name] >= most:
            whose = "that need no token" if principal is _ANYBODY else f"of {principal.name}"
            detail = f"{most} calls {whose} are under way, and that is the most."
            raise ServiceFailed(ServiceFailure.OVERLOADED, detail, "Wait for some of them to end.")
        self._calls[principal.name] += 1
        try:
            yield
        finally:
            self._calls[principal.name] -= 1
            if not self._calls[principal.name]:
                del self._calls[principal.name]


class Door(grpc.aio.ServerInterceptor):
    """The guard at one server."""

    def __init__(self, guard: Guard, local: bool) -> None:
        self._guard = guard
        self._local = local

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC says UNIMPLEMENTED
        method = handler_call_details.method
        # Known by its headers: whoever has no token is sent away before a byte of the request has been waited for.
        who: Principal | ServiceFailed
        try:
            who = self._guard.principal_of(method, handler_call_details.invocation_metadata or (), self._local)
        except ServiceFailed as error:
            who = error
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                inner = handler.unary_unary
            case True, False:
                inner = handler.stream_unary
            case False, True:
                inner = handler.unary_stream
            case _:
                inner = handler.stream_stream
        # All as calls that stream requests: for the others gRPC itself would wait for the message, without an end, and
        # without our knowing. Messages are decoded within the call: gRPC would answer UNKNOWN for bytes that are none.
        # The stubs know gRPC's synchronous handlers only.
        called: Any = inner
        streams = inspect.isasyncgenfunction(called)

        async def run(parts: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with self._call(method, context, who) as principal:
                decode = handler.request_deserializer
                if handler.request_streaming:
                    request: Any = _each(parts, decode)
                else:
                    request = _decoded(await self._first(parts, principal), decode)
                if not streams:
                    return await called(request, context)
                # Written from here: gRPC would leave the generator unclosed when the call is cancelled between two.
                async with aclosing(called(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)
                return None

        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(run, response_serializer=handler.response_serializer)
        return wrapped

    async def _first(self, parts: AsyncIterator[bytes], principal: Principal) -> bytes:
        """The one message of a request."""
        caps = self._guard.caps
        seconds = caps.open_first_message_s if principal is _ANYBODY else caps.first_message_s
        try:
            async with asyncio.timeout(seconds):
                found = await anext(aiter(parts), None)
        except TimeoutError:
            detail = f"the request did not come within {seconds:g} s."
            raise ServiceFailed(ServiceFailure.TIMED_OUT, detail, "Send it again.") from None
        if found is None:
            raise InvalidInput("request", "is missing.", "Send one message.")
        return found

    @asynccontextmanager
    async def _call(
        self, method: str, context: grpc.aio.ServicerContext[Any, Any], who: Principal | ServiceFailed
    ) -> AsyncIterator[Principal]:
        task = asyncio.current_task()
        assert task is not None
        self._guard._tasks.add(task)
        started = time.monotonic()
        code, name = "CANCELLED", "-"
        try:
            if isinstance(who, ServiceFailed):
                raise who
            name = who.name
            with self._guard.place(who, self._local):
                _caller.set(who)
                yield who
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
            self._guard._tasks.discard(task)
            access.info(
                "%s %s %s %s %.3f s", context.peer().partition(":")[0], name, method, code, time.monotonic() - started
            )


def _decoded(data: bytes, decode: Callable[[bytes], Any] | None) -> Any:
    try:
        return data if decode is None else decode(data)
    except DecodeError:
        raise InvalidInput("request", "is not a message of this call.", "Use this release's protos.") from None


async def _each(parts: AsyncIterator[bytes], decode: Callable[[bytes], Any] | None) -> AsyncIterator[Any]:
    async for data in parts:
        yield _decoded(data, decode)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], status: Status) -> None:
    """Raises gRPC's own exception, which has to reach gRPC."""
    await context.abort(_CODES[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))


def trace_context(context: Any) -> dict[str, str]:
    """The caller's W3C trace context, from the call's metadata."""
    found = {key: value for key, value in context.invocation_metadata() or () if key in ("traceparent", "tracestate")}
    return {key: value for key, value in found.items() if isinstance(value, str)}
