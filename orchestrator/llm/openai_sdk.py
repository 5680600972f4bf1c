"""The SDK's own classes: how its client is built, and what its exceptions mean here.

The failures are those of the SDK's `openai._exceptions` and the error codes of OpenAI's API reference ("Error codes"),
with the wordings of common compatible servers (vLLM, llama.cpp, Azure).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
import httpx2
import openai

from orchestrator.errors import ModelFailed, ModelFailure
from orchestrator.llm.openai_plain import PlainRequests
from orchestrator.llm.retry_after import retry_after

_DETAIL_CHARACTERS = 600
_SECRET_CHARACTERS = 8  # a shorter key is a placeholder like "none", and a word of many messages
_TELLING_CHARACTERS = 12  # of a key's beginning
_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_*.\-]{4,}|(?i:bearer)\s+[^\s'\"]{8,}")
_TOO_LONG = re.compile(
    r"maximum context length|context[ _](?:length|window|size)|prompt is too long|too many (?:input )?tokens"
    r"|request too large|input is too long|exceeds? the (?:available|model's) context",
    re.IGNORECASE,
)
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_REFUSAL_CODES = {"content_filter", "content_policy_violation", "invalid_prompt", "ResponsibleAIPolicyViolation"}


def new_sdk_client(
    api_key: str, base_url: str, timeout_s: float, connect_timeout_s: float, max_connections: int
) -> tuple[openai.AsyncOpenAI, PlainRequests]:
    """The client, and the short way through it for plain calls."""
    # No pool makes a request wait: the throttle alone decides how many there are.
    connections = max_connections + 8
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    connect_s = min(connect_timeout_s, timeout_s)
    timeout = httpx2.Timeout(timeout_s, connect=connect_s, pool=None)
    tls = httpx2.create_ssl_context()
    http = openai.DefaultAioHttpClient(base_url=base_url, timeout=timeout, limits=limits, verify=tls)
    # Retries have one place of their own, where they are counted, told and capped.
    sdk = openai.AsyncOpenAI(api_key=api_key, base_url=base_url, timeout=timeout, max_retries=0, http_client=http)
    return sdk, PlainRequests(sdk, http, tls, connect_s, limits)


@dataclass(frozen=True, slots=True)
class Failure:
    """A foreign exception, renamed. `unbilled`: the API turned the request down, so it cost nothing."""

    error: ModelFailed
    unbilled: bool


def rename(error: Exception, model: str, secret: str, now: Callable[[], float] = time.time) -> Failure | None:
    """What an exception of the SDK means; None for one that is none of the API's doing."""
    match error:
        case openai.APIStatusError():
            return _status_failure(error, model, secret, now)
        case openai.APIConnectionError() | httpx2.RequestError():
            return _transport_failure(_root_cause(error), model, secret)
        case openai.APIResponseValidationError() | json.JSONDecodeError() | UnicodeDecodeError():
            return Failure(malformed(model, f"the answer is not valid JSON ({error})", secret), False)
        case openai.APIError():  # an error event inside a stream that began well
            kind = _kind(None, _code(error), error.message)
            return Failure(ModelFailed(kind, model, clean(error.message, secret)), False)
        case openai.OpenAIError():
            return Failure(ModelFailed(ModelFailure.REJECTED, model, clean(str(error), secret)), True)
        case _:
            return None


def _transport_failure(cause: BaseException, model: str, secret: str) -> Failure:
    # By what aiohttp raised: the SDK's translation takes every lost connection for a time-out of connecting.
    match cause:
        case aiohttp.ConnectionTimeoutError() | httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return Failure(ModelFailed(ModelFailure.TIMED_OUT, model, "could not connect in time"), True)
        case aiohttp.ServerTimeoutError() | httpx2.TimeoutException() | TimeoutError():
            return Failure(ModelFailed(ModelFailure.TIMED_OUT, model, "no answer in time"), False)
    unsent = isinstance(cause, aiohttp.ClientConnectorError | httpx2.ConnectError | httpx2.UnsupportedProtocol)
    detail = clean(f"{type(cause).__name__}: {cause}", secret)
    return Failure(ModelFailed(ModelFailure.CONNECTION, model, detail), unsent)


def _root_cause(error: BaseException) -> BaseException:
    """aiohttp's exception where it is one of those that `error` came from, else the SDK's transport's own."""
    cause = error.__cause__ or error
    while not isinstance(cause, aiohttp.ClientError) and cause.__cause__ is not None:
        cause = cause.__cause__
    return cause if isinstance(cause, aiohttp.ClientError) else error.__cause__ or error


def malformed(model: str, detail: str, secret: str) -> ModelFailed:
    return ModelFailed(ModelFailure.MALFORMED, model, clean(detail, secret))


def error_body(model: str, body: object, secret: str) -> ModelFailed:
    """The failure for an answer with status 200 that holds `{"error": {"message", "type", "code"}}`."""
    fields = body if isinstance(body, Mapping) else {"message": body}
    message = str(fields.get("message") or "the API sent an error without a message")
    code = str(fields.get("code") or fields.get("type") or "")
    return ModelFailed(_kind(None, code, message), model, clean(message, secret))


def rejected_parameter(error: Exception) -> str:
    """What a 400 complains about, to look for a parameter's name in; empty for any other exception."""
    if isinstance(error, openai.APIStatusError) and error.status_code in (400, 422):
        return f"{error.param} {error.message}"
    return ""


def clean(text: str, secret: str) -> str:
    """A message without the key, a telling beginning of it, or anything like one, and of bounded length."""
    if len(secret) >= _SECRET_CHARACTERS:
        # The longest first: some servers quote a part of the key that they refuse.
        for end in range(len(secret), min(_TELLING_CHARACTERS, len(secret)) - 1, -1):
            text = text.replace(secret[:end], "[key]")
    text = " ".join(_KEY_LIKE.sub("[key]", text).split())
    return text if len(text) <= _DETAIL_CHARACTERS else text[:_DETAIL_CHARACTERS] + " ..."


def _status_failure(error: openai.APIStatusError, model: str, secret: str, now: Callable[[], float]) -> Failure:
    status = error.status_code
    message = error.message
    if "<html" in message[:2000].lower():
        message = f"status {status} with an HTML page, as proxies send"
    failed = ModelFailed(
        _kind(status, _code(error), message),
        model,
        clean(message, secret),
        status=status,
        retry_after_s=retry_after(error.response.headers, now()),
    )
    return Failure(failed, True)


def _code(error: openai.APIError) -> str:
    return error.code or error.type or ""


def _kind(status: int | None, code: str, message: str) -> ModelFailure:
    if code in _QUOTA_CODES:
        return ModelFailure.QUOTA
    if code in _REFUSAL_CODES:
        return ModelFailure.REFUSED
    if code == "context_length_exceeded" or (status in (None, 400, 413, 422, 429) and _TOO_LONG.search(message)):
        return ModelFailure.TOO_LONG
    match status:
        case 401 | 403:
            return ModelFailure.AUTHENTICATION
        case 404:
            return ModelFailure.NOT_FOUND
        case 408:
            return ModelFailure.TIMED_OUT
        case 413:
            return ModelFailure.TOO_LONG
        case 429:
            return ModelFailure.RATE_LIMITED
        case 402:
            return ModelFailure.QUOTA
        case 409:  # a lock on their side; the SDK's own rule is to try again too
            return ModelFailure.SERVER
        case int() if status >= 500:
            return ModelFailure.SERVER
    if code == "model_not_found":
        return ModelFailure.NOT_FOUND
    if code in ("rate_limit_exceeded", "rate_limit_error", "requests", "tokens"):
        return ModelFailure.RATE_LIMITED
    if code in ("invalid_api_key", "authentication_error"):
        return ModelFailure.AUTHENTICATION
    # Without a status it is an error inside an answer that began well: the server's own trouble, mostly.
    return ModelFailure.SERVER if status is None and "invalid_request" not in code else ModelFailure.REJECTED
