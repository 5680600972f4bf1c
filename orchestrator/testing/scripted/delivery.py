"""How each outcome looks over HTTP: the one `match` over the union.

`deliver` settles the record before the last byte leaves, so that a client that has its answer never finds
its own request still in flight.
"""

import asyncio
from collections.abc import Callable
from typing import NoReturn, TypeAlias, assert_never

from aiohttp import web

from orchestrator.testing.scripted import wire
from orchestrator.testing.scripted.chat import (
    ApiError,
    ChatRequest,
    Damage,
    Damaged,
    Disconnect,
    Hang,
    Outcome,
    RawBody,
    Reply,
)
from orchestrator.testing.scripted.record import RequestState

Settle: TypeAlias = Callable[[RequestState, int | None], None]

_JSON = "application/json"
_SSE = "text/event-stream"
_TEXT = "text/plain"
_ERROR_IN_BODY = ApiError(500, "The server had an error while processing your request.", "server_error")


async def deliver(http: web.Request, request: ChatRequest, outcome: Outcome, settle: Settle) -> web.StreamResponse:
    """Answer with the outcome. Returns only where a whole response was given; else is cancelled when the
    connection ends.
    """
    match outcome:
        case Reply() if request.stream:
            return await _stream(http, request, wire.events(outcome, request), settle)
        case Reply():
            body = wire.completion_body(outcome, request)
            settle(RequestState.ANSWERED, 200)
            return _response(request, body)
        case ApiError():
            settle(RequestState.ANSWERED, outcome.status)
            return error_response(outcome, request.ordinal)
        case RawBody():
            settle(RequestState.ANSWERED, outcome.status)
            return _response(request, outcome.body, outcome.content_type, outcome.status)
        case Damaged():
            if request.stream:
                return await _damaged_stream(http, request, outcome, settle)
            return await _damaged_body(http, request, outcome, settle)
        case Hang():
            return await _until_disconnected()
        case Disconnect():
            settle(RequestState.BROKEN, None)
            return await _close(http)
        case unreachable:
            assert_never(unreachable)


def error_response(error: ApiError, ordinal: int) -> web.Response:
    """The error body and headers of an `ApiError`."""
    headers = [("x-request-id", request_id(ordinal)), *error.headers]
    return web.Response(body=wire.error_body(error), status=error.status, content_type=_JSON, headers=headers)


def request_id(ordinal: int) -> str:
    """The value of `x-request-id`, which clients report with an error."""
    return f"req_scripted_{ordinal}"


async def _damaged_body(
    http: web.Request, request: ChatRequest, damaged: Damaged, settle: Settle
) -> web.StreamResponse:
    body = wire.completion_body(damaged.reply, request)
    match damaged.damage:
        case Damage.NO_CHOICES:
            value = {**wire.completion(damaged.reply, request), "choices": []}
            settle(RequestState.ANSWERED, 200)
            return _response(request, wire.to_json(value))
        case Damage.MALFORMED:
            settle(RequestState.ANSWERED, 200)
            return _response(request, body[: len(body) // 2])
        case Damage.WRONG_CONTENT_TYPE:
            settle(RequestState.ANSWERED, 200)
            return _response(request, body, _TEXT)
        case Damage.ERROR_BODY:
            settle(RequestState.ANSWERED, 200)
            return _response(request, wire.error_body(_ERROR_IN_BODY))
        case Damage.CUT | Damage.STALL:
            response = web.StreamResponse(headers={"x-request-id": request_id(request.ordinal)})
            response.content_type = _JSON
            response.content_length = len(body)
            await response.prepare(http)
            await response.write(body[: len(body) // 2])
            return await _leave_open_or_close(http, damaged.damage, settle)
        case unreachable:
            assert_never(unreachable)


async def _damaged_stream(
    http: web.Request, request: ChatRequest, damaged: Damaged, settle: Settle
) -> web.StreamResponse:
    events = wire.events(damaged.reply, request)
    # The first event carries the role and no content.
    intact = events[: 1 + damaged.after]
    rest = events[len(intact) :]
    match damaged.damage:
        case Damage.NO_CHOICES:
            empty = wire.event(wire.chunk_without_choices(damaged.reply, request))
            return await _stream(http, request, [empty, wire.DONE], settle)
        case Damage.MALFORMED:
            broken = b'data: {"id": "chatcmpl-scripted-\n\n'
            return await _stream(http, request, [*intact, broken, *rest], settle)
        case Damage.WRONG_CONTENT_TYPE:
            return await _stream(http, request, events, settle, _TEXT)
        case Damage.ERROR_BODY:
            error = wire.event(wire.error_value(_ERROR_IN_BODY))
            return await _stream(http, request, [*intact, error], settle)
        case Damage.CUT | Damage.STALL:
            response = await _open_stream(http, request)
            await response.write(b"".join(intact))
            return await _leave_open_or_close(http, damaged.damage, settle)
        case unreachable:
            assert_never(unreachable)


async def _stream(
    http: web.Request, request: ChatRequest, events: list[bytes], settle: Settle, content_type: str = _SSE
) -> web.StreamResponse:
    response = await _open_stream(http, request, content_type)
    settle(RequestState.ANSWERED, 200)
    # One write for all events: the client sees the same stream, and a thousand of them stay cheap.
    await response.write(b"".join(events))
    await response.write_eof()
    return response


async def _open_stream(http: web.Request, request: ChatRequest, content_type: str = _SSE) -> web.StreamResponse:
    response = web.StreamResponse(headers={"x-request-id": request_id(request.ordinal), "Cache-Control": "no-cache"})
    response.content_type = content_type
    if content_type == _SSE:
        response.charset = "utf-8"
    await response.prepare(http)
    return response


async def _leave_open_or_close(http: web.Request, damage: Damage, settle: Settle) -> NoReturn:
    if damage is Damage.STALL:
        await _until_disconnected()
    settle(RequestState.BROKEN, 200)
    await _close(http)


async def _close(http: web.Request) -> NoReturn:
    # close() and not abort(): what was written before still reaches the client, so a cut is at the same place
    # each time.
    if http.transport is not None:
        http.transport.close()
    await _until_disconnected()


async def _until_disconnected() -> NoReturn:
    # The end of the connection cancels the task of the request, and that is the only way out.
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a future that nobody holds was resolved")


def _response(request: ChatRequest, body: bytes, content_type: str = _JSON, status: int = 200) -> web.Response:
    return web.Response(
        body=body,
        status=status,
        content_type=content_type,
        headers={"x-request-id": request_id(request.ordinal)},
    )
