"""Faults on demand: each turns a policy into one that misbehaves in one way.

    with_faults(
        echo,
        latency(0.05),
        on(first_attempts(2), respond(rate_limited(retry_after="1"))),
        on(share(0.1, seed=7), damage(Damage.CUT)),
    )

The first fault named is the outermost. Whether a fault strikes depends on the request alone (its ordinal, its
attempt, its prompt), so a run of the same requests meets the same faults.
"""

import asyncio
import email.utils
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias

from orchestrator.testing.scripted.chat import (
    ApiError,
    ChatRequest,
    Damage,
    Damaged,
    FinishReason,
    Outcome,
    Policy,
    RawBody,
    Reply,
    UsageReport,
    ask,
)
from orchestrator.testing.scripted.policies import Predicate
from orchestrator.testing.scripted.wire import prompt_tokens

Fault: TypeAlias = Callable[[Policy], Policy]


def with_faults(policy: Policy, *faults: Fault) -> Policy:
    """The policy inside all the faults; the first named is the outermost."""
    for fault in reversed(faults):
        policy = fault(policy)
    return policy


def on(when: Predicate, fault: Fault) -> Fault:
    """The fault for the requests that the predicate picks, and nothing for the others."""

    def apply(policy: Policy) -> Policy:
        faulty = fault(policy)

        async def chosen(request: ChatRequest) -> Outcome:
            return await ask(faulty if when(request) else policy, request)

        return chosen

    return apply


# When a fault strikes.


def first_attempts(times: int) -> Predicate:
    """The first `times` attempts of each prompt: fail, fail, then success, for any client that retries."""
    return lambda request: request.attempt <= times


def ordinals(*numbers: int) -> Predicate:
    """The requests with these numbers, 0 being the first that the server got."""
    return lambda request: request.ordinal in numbers


def every(n: int) -> Predicate:
    """Every nth request that the server gets, counted from 1."""
    if n < 1:
        raise ValueError(f"every() takes a number of at least 1, not {n}")
    return lambda request: (request.ordinal + 1) % n == 0


def share(rate: float, *, seed: int = 0) -> Predicate:
    """A share of all attempts, 0 to 1, drawn from seed, prompt and attempt, not from the order."""
    if not 0 <= rate <= 1:
        raise ValueError(f"share() takes a rate from 0 to 1, not {rate}")
    return lambda request: random.Random(f"{seed}/{request.digest}/{request.attempt}").random() < rate


# What a fault does.


def latency(
    seconds: float | Callable[[ChatRequest], float],
    *,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> Fault:
    """Wait before the policy is asked. Ends at once when the client leaves."""

    def apply(policy: Policy) -> Policy:
        async def late(request: ChatRequest) -> Outcome:
            await sleep(seconds(request) if callable(seconds) else seconds)
            return await ask(policy, request)

        return late

    return apply


def respond(outcome: Outcome | Callable[[], Outcome]) -> Fault:
    """This outcome instead of the policy's; a function is called for each request."""
    return lambda policy: lambda request: outcome() if callable(outcome) else outcome


def bend(change: Callable[[Reply], Outcome]) -> Fault:
    """Ask the policy, and change its reply; an outcome that is no reply stays as it is."""

    def apply(policy: Policy) -> Policy:
        async def bent(request: ChatRequest) -> Outcome:
            outcome = await ask(policy, request)
            return change(outcome) if isinstance(outcome, Reply) else outcome

        return bent

    return apply


def damage(kind: Damage, *, after: int = 1) -> Fault:
    """Break the reply in this way; a stream gives `after` content chunks first."""
    return bend(lambda reply: Damaged(reply, kind, after))


def without_usage() -> Fault:
    return bend(lambda reply: replace(reply, usage=UsageReport.OMITTED))


def with_text(text: str | None) -> Fault:
    """Replace the content: None gives `content: null`."""
    return bend(lambda reply: replace(reply, text=text))


def refusing(refusal: str = "I'm sorry, I can't help with that.") -> Fault:
    """`content: null` and a `refusal`, with finish reason "stop", as the API refuses."""
    return bend(lambda reply: replace(reply, text=None, refusal=refusal))


def finishing(reason: FinishReason) -> Fault:
    """Replace the finish reason; one that means a cut ("length", "content_filter") loses half of the text."""

    def change(reply: Reply) -> Reply:
        text = reply.text
        if text is not None and reason in ("length", "content_filter"):
            text = text[: len(text) // 2]
        return replace(reply, text=text, finish_reason=reason)

    return bend(change)


def context_window(tokens: int) -> Fault:
    """`context_length_exceeded` for prompts of more than so many tokens (4 characters each)."""

    def apply(policy: Policy) -> Policy:
        async def limited(request: ChatRequest) -> Outcome:
            asked = prompt_tokens(request)
            return context_length_exceeded(tokens, asked) if asked > tokens else await ask(policy, request)

        return limited

    return apply


# OpenAI's errors, word for word where a client may look at them.


def rate_limited(*, retry_after: str = "", retry_after_ms: str = "") -> ApiError:
    """429. `retry_after` is sent as it is: seconds, or an HTTP date (`http_date`); RFC 9110, 10.2.3."""
    named = (("Retry-After", retry_after), ("retry-after-ms", retry_after_ms))
    return ApiError(
        429,
        "Rate limit reached for requests. Please try again later.",
        "requests",
        code="rate_limit_exceeded",
        headers=tuple((name, value) for name, value in named if value),
    )


def http_date(seconds_from_now: float) -> str:
    """An HTTP date so far ahead, for `Retry-After`. Dates have whole seconds."""
    return email.utils.formatdate(time.time() + seconds_from_now, usegmt=True)


def server_error(status: int = 500) -> ApiError:
    """500, 502, 503 or any other status of the 5xx class."""
    messages = {
        502: "Bad gateway.",
        503: "The engine is currently overloaded, please try again later.",
        504: "The server took too long to respond.",
    }
    default = "The server had an error while processing your request. Sorry about that!"
    return ApiError(status, messages.get(status, default), "server_error")


def context_length_exceeded(limit: int = 8192, asked: int = 8193) -> ApiError:
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens. However, your messages "
        f"resulted in {asked} tokens. Please reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    )


def insufficient_quota() -> ApiError:
    return ApiError(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        code="insufficient_quota",
    )


def model_not_found(model: str) -> ApiError:
    return ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
    )


def client_error(status: int) -> ApiError:
    """400, 401, 403 or any other status of the 4xx class, in the API's words where it has some."""
    match status:
        case 401:
            return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        case 403:
            return ApiError(403, "You are not allowed to use this model.", "request_forbidden")
        case 404:
            return model_not_found("scripted")
        case 429:
            return rate_limited()
        case _:
            return ApiError(status, f"The request was refused with status {status}, as the script says.")


def html_page(status: int = 502) -> RawBody:
    """The page of a proxy that stands before the API."""
    page = f"<html><head><title>{status}</title></head><body><h1>{status}</h1><hr>nginx</body></html>"
    return RawBody(page.encode(), "text/html", status)
