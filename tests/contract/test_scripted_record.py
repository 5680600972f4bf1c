"""What the record of a server keeps, and how a test waits on it."""

import asyncio

import pytest

from orchestrator.testing.scripted import RequestLog, RequestState

BODY = {"model": "m", "messages": []}


def test_requests_are_kept_with_their_state() -> None:
    log = RequestLog()
    first = log.begin(BODY, {"authorization": "Bearer secret"})
    log.begin("not json", {})
    log.end(first, RequestState.ANSWERED, 200)

    answered, running = log.requests
    assert (answered.ordinal, answered.model, answered.state, answered.status) == (0, "m", RequestState.ANSWERED, 200)
    assert answered.ended_at is not None
    assert answered.started_at <= answered.ended_at
    assert (running.ordinal, running.model, running.state) == (1, "", RequestState.IN_FLIGHT)
    assert running.ended_at is None
    assert log.count(RequestState.IN_FLIGHT) == 1


def test_the_key_of_a_client_is_kept_out_of_the_repr() -> None:
    log = RequestLog()
    log.begin(BODY, {"authorization": "Bearer secret"})

    assert log.requests[0].headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(log.requests)


def test_the_peak_outlives_the_requests_that_made_it() -> None:
    log = RequestLog()
    entries = [log.begin(BODY, {}) for _ in range(3)]
    for entry in entries:
        log.end(entry, RequestState.ANSWERED, 200)
    log.begin(BODY, {})

    assert (log.in_flight, log.max_in_flight, log.started) == (1, 3, 4)


def test_only_the_newest_requests_are_kept() -> None:
    log = RequestLog(limit=2)
    oldest = log.begin(BODY, {})
    log.begin(BODY, {})
    log.begin(BODY, {})
    log.end(oldest, RequestState.ANSWERED, 200)

    assert [record.ordinal for record in log.requests] == [1, 2]
    assert (log.in_flight, log.started) == (2, 3)


def test_attempts_are_counted_by_prompt_and_the_oldest_prompt_is_forgotten() -> None:
    log = RequestLog(limit=2)

    assert [log.next_attempt(digest) for digest in ("a", "a", "b", "a")] == [1, 2, 1, 3]
    assert [log.next_attempt(digest) for digest in ("c", "a", "b")] == [1, 4, 1]


def test_a_reset_forgets_all_but_what_is_in_flight() -> None:
    log = RequestLog()
    running = log.begin(BODY, {})
    log.end(log.begin(BODY, {}), RequestState.ANSWERED, 200)
    log.next_attempt("a")

    log.reset()
    assert (log.requests, log.in_flight, log.max_in_flight) == ((), 1, 1)
    assert log.next_attempt("a") == 1

    log.begin(BODY, {})
    log.end(running, RequestState.CANCELLED)
    assert [(record.ordinal, record.state) for record in log.requests] == [(0, RequestState.IN_FLIGHT)]
    assert log.in_flight == 1


async def test_waiting_ends_with_the_change_that_was_waited_for() -> None:
    log = RequestLog()
    waiting = asyncio.ensure_future(log.wait_for(lambda log: log.count(RequestState.ANSWERED) == 1))
    await asyncio.sleep(0)

    entry = log.begin(BODY, {})
    await asyncio.sleep(0)
    assert not waiting.done()

    log.end(entry, RequestState.ANSWERED, 200)
    await waiting


async def test_waiting_for_what_is_already_so_ends_at_once() -> None:
    await RequestLog().wait_for(lambda log: log.in_flight == 0)


async def test_a_waiter_that_gave_up_is_forgotten() -> None:
    log = RequestLog()
    asked: list[int] = []

    def never(log: RequestLog) -> bool:
        asked.append(log.started)
        return False

    waiting = asyncio.ensure_future(log.wait_for(never))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    log.begin(BODY, {})

    assert waiting.cancelled()
    assert asked == [0]


async def test_an_error_of_the_predicate_reaches_the_one_who_waits() -> None:
    log = RequestLog()
    waiting = asyncio.ensure_future(log.wait_for(lambda log: log.started > 0 and bool(1 // 0)))
    await asyncio.sleep(0)
    log.begin(BODY, {})

    with pytest.raises(ZeroDivisionError):
        await waiting


def test_a_log_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RequestLog(limit=0)
