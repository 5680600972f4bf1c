"""When faults strike, what they do, and how a query string names them."""

import email.utils
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.testing.scripted import (
    ApiError,
    ChatRequest,
    Damage,
    Damaged,
    Disconnect,
    FaultSpecError,
    Hang,
    Outcome,
    RawBody,
    Reply,
    UsageReport,
    ask,
    bend,
    constant,
    context_window,
    damage,
    echo,
    every,
    first_attempts,
    latency,
    on,
    ordinals,
    parse_faults,
    parse_request,
    respond,
    server_error,
    share,
    with_faults,
)
from orchestrator.testing.scripted.fault_spec import NAMED_FAULTS, split_model

REQUEST = parse_request({"model": "m", "messages": [{"role": "user", "content": "12345678"}]})


async def outcome_of(spec: str, request: ChatRequest = REQUEST) -> Outcome:
    return await ask(with_faults(echo, *parse_faults(spec)), request)


def struck(when: Callable[[ChatRequest], bool], requests: list[ChatRequest]) -> list[bool]:
    return [when(request) for request in requests]


def test_first_attempts_strike_by_prompt() -> None:
    attempts = [replace(REQUEST, attempt=attempt) for attempt in (1, 2, 3)]

    assert struck(first_attempts(2), attempts) == [True, True, False]


def test_ordinals_and_every_strike_by_order_of_arrival() -> None:
    arrivals = [replace(REQUEST, ordinal=ordinal) for ordinal in range(6)]

    assert struck(ordinals(0, 4), arrivals) == [True, False, False, False, True, False]
    assert struck(every(3), arrivals) == [False, False, True, False, False, True]


def test_a_share_strikes_the_same_requests_in_any_order() -> None:
    requests = [replace(REQUEST, digest=f"{number:032x}", ordinal=number) for number in range(1000)]
    reordered = [replace(request, ordinal=999 - request.ordinal) for request in requests]

    hits = struck(share(0.25, seed=1), requests)

    assert struck(share(0.25, seed=1), reordered) == hits
    assert struck(share(0.25, seed=2), requests) != hits
    assert 200 < sum(hits) < 300
    assert not any(struck(share(0), requests))
    assert all(struck(share(1), requests))


async def test_the_first_fault_is_the_outermost() -> None:
    policy = with_faults(
        constant("x"),
        bend(lambda reply: replace(reply, text=f"<{reply.text}>")),
        bend(lambda reply: replace(reply, text=f"({reply.text})")),
    )

    assert await ask(policy, REQUEST) == Reply("<(x)>")


async def test_a_fault_that_bends_replies_lets_an_error_through() -> None:
    policy = with_faults(constant("x"), damage(Damage.CUT), respond(server_error(503)))

    assert await ask(policy, REQUEST) == server_error(503)


async def test_latency_comes_before_the_policy_and_may_depend_on_the_request() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    fixed = with_faults(echo, latency(0.2, sleep=sleep))
    varying = with_faults(echo, latency(lambda request: len(request.last_user) / 4, sleep=sleep))

    assert await ask(fixed, REQUEST) == await ask(varying, REQUEST) == Reply("12345678")
    assert slept == [0.2, 2.0]


async def test_a_context_window_lets_a_prompt_of_its_size_pass() -> None:
    assert await ask(with_faults(echo, context_window(2)), REQUEST) == Reply("12345678")

    error = await ask(with_faults(echo, context_window(1)), REQUEST)

    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert "maximum context length is 1 tokens" in error.message


async def test_on_leaves_the_other_requests_alone() -> None:
    policy = with_faults(echo, on(ordinals(1), respond(Hang())))

    assert await ask(policy, REQUEST) == Reply("12345678")
    assert await ask(policy, replace(REQUEST, ordinal=1)) == Hang()


# The query string.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", Reply("12345678")),
        ("fail=hang", Hang()),
        ("fail=disconnect", Disconnect()),
        ("fail=cut&after=3", Damaged(Reply("12345678"), Damage.CUT, after=3)),
        ("fail=stall", Damaged(Reply("12345678"), Damage.STALL)),
        ("fail=malformed", Damaged(Reply("12345678"), Damage.MALFORMED)),
        ("fail=no_choices", Damaged(Reply("12345678"), Damage.NO_CHOICES)),
        ("fail=missing_usage", Reply("12345678", usage=UsageReport.OMITTED)),
        ("fail=null_content", Reply(None)),
        ("fail=empty_content", Reply("")),
        ("fail=length", Reply("1234", "length")),
        ("fail=content_filter", Reply("1234", "content_filter")),
    ],
)
async def test_a_specification_names_a_fault(spec: str, expected: Outcome) -> None:
    assert await outcome_of(spec) == expected


@pytest.mark.parametrize(
    ("spec", "status", "type_", "code"),
    [
        ("fail=400", 400, "invalid_request_error", None),
        ("fail=401", 401, "invalid_request_error", "invalid_api_key"),
        ("fail=404", 404, "invalid_request_error", "model_not_found"),
        ("fail=429", 429, "requests", "rate_limit_exceeded"),
        ("fail=500", 500, "server_error", None),
        ("fail=503", 503, "server_error", None),
        ("fail=context_length_exceeded", 400, "invalid_request_error", "context_length_exceeded"),
        ("fail=insufficient_quota", 429, "insufficient_quota", "insufficient_quota"),
    ],
)
async def test_a_specification_names_an_error(spec: str, status: int, type_: str, code: str | None) -> None:
    error = await outcome_of(spec)

    assert isinstance(error, ApiError)
    assert (error.status, error.type, error.code) == (status, type_, code)


@pytest.mark.parametrize("name", sorted(NAMED_FAULTS))
async def test_every_named_fault_changes_the_outcome(name: str) -> None:
    assert await outcome_of(f"fail={name}") != Reply("12345678")


async def test_the_page_of_a_proxy_is_html() -> None:
    page = await outcome_of("fail=html")

    assert isinstance(page, RawBody)
    assert (page.status, page.content_type) == (502, "text/html")


async def test_retry_headers_are_sent_as_they_were_written() -> None:
    error = await outcome_of("fail=429&retry_after=0.10&retry_after_ms=250")

    assert isinstance(error, ApiError)
    assert error.headers == (("Retry-After", "0.10"), ("retry-after-ms", "250"))


async def test_a_retry_date_is_an_http_date_ahead_of_now() -> None:
    error = await outcome_of("fail=503&retry_after_date=3600")

    assert isinstance(error, ApiError)
    ((name, date),) = error.headers
    assert name == "Retry-After"
    assert date.endswith(" GMT")
    ahead = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    assert 3000 < ahead <= 3600


async def test_times_every_and_rate_say_when_it_fails() -> None:
    third = replace(REQUEST, attempt=3, ordinal=3)

    assert await outcome_of("fail=hang&times=3", third) == Hang()
    assert await outcome_of("fail=hang&times=2", third) == Reply("12345678")
    assert await outcome_of("fail=hang&every=4", third) == Hang()
    assert await outcome_of("fail=hang&every=3", third) == Reply("12345678")
    assert await outcome_of("fail=hang&rate=1&seed=5", third) == Hang()
    assert await outcome_of("fail=hang&rate=0", third) == Reply("12345678")


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("fail", "key=value"),
        ("fial=429", "'fial' is unknown"),
        ("fail=nonsense", "fail='nonsense' is unknown"),
        ("fail=200", "status from 400 to 599"),
        ("fail=429&fail=500", "twice"),
        ("latency=-1", "latency='-1' must be a number of 0 or more"),
        ("latency=nan", "must be a number"),
        ("latency=inf", "must be a number"),
        ("window=0", "window='0' must be a whole number of 1 or more"),
        ("times=2", "'times' says how to fail: it needs 'fail'"),
        ("fail=429&times=0", "times='0' must be a whole number of 1 or more"),
        ("fail=429&times=2&every=3", "times and every all say when"),
        ("fail=429&rate=2", "share from 0 to 1"),
        ("fail=429&seed=1", "'seed' belongs to 'rate'"),
        ("fail=hang&retry_after=1", "'retry_after' is a header of an error"),
        ("fail=429&retry_after=1&retry_after_date=1", "one header"),
        ("fail=429&retry_after=soon", "must be a number"),
        ("fail=429&after=1", "'after' counts chunks"),
        ("fail=hang&after=1", "'after' counts chunks"),
        ("fail=cut&after=x", "after='x' must be a whole number of 0 or more"),
    ],
)
def test_a_bad_specification_is_refused_with_its_rule(spec: str, rule: str) -> None:
    with pytest.raises(FaultSpecError) as caught:
        parse_faults(spec)

    assert rule in str(caught.value)


def test_a_model_name_is_split_at_its_first_question_mark() -> None:
    assert split_model("echo") == ("echo", "")
    assert split_model("echo?fail=hang") == ("echo", "fail=hang")
