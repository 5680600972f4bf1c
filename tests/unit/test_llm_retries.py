"""What is tried again, when, and what is told of it. The clock is the test's own."""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidInput, ModelFailed, ModelFailure
from orchestrator.events import EventLog, ModelRetried, Record
from orchestrator.llm.retries import RETRYABLE, Backoff, Retried
from orchestrator.llm.retry_after import retry_after
from orchestrator.llm.throttle import Throttle, Throttled
from orchestrator.testing.fake_model import FakeChatModel, Outcome
from orchestrator.values import Message, Role

ASK = (Message(Role.USER, "hello"),)


def failing(kind: ModelFailure, retry_after_s: float | None = None) -> ModelFailed:
    return ModelFailed(kind, "fake", "no luck", retry_after_s=retry_after_s)


def in_turn(*outcomes: Outcome) -> Callable[[Sequence[Message]], Outcome]:
    rest: Iterator[Outcome] = iter(outcomes)
    return lambda messages: next(rest)


class Naps:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def test_a_passing_failure_is_retried_and_told_on_the_calls_span() -> None:
    naps, records = Naps(), list[Record]()
    model = FakeChatModel(in_turn(failing(ModelFailure.SERVER), failing(ModelFailure.CONNECTION), "at last"))
    reply = await Retried(model, sleep=naps, draw=lambda: 0.0).chat(ASK, EventLog(records.append).root())
    assert reply.text == "at last"
    assert naps.seconds == [0.25, 0.5]
    events = [record.event for record in records]
    assert events == [
        ModelRetried(1, 0.25, "server: no luck"),
        ModelRetried(2, 0.5, "connection: no luck"),
    ]


@pytest.mark.parametrize("kind", ModelFailure)
async def test_each_kind_is_retried_as_the_table_says(kind: ModelFailure) -> None:
    naps = Naps()
    model = FakeChatModel(in_turn(*[failing(kind)] * 3))
    with pytest.raises(ModelFailed) as caught:
        await Retried(model, 3, sleep=naps).chat(ASK, EventLog().root())
    attempts = 3 if RETRYABLE[kind] else 1
    assert caught.value.kind is kind
    assert caught.value.attempts == attempts == len(model.calls)
    assert len(naps.seconds) == attempts - 1


async def test_retry_after_wins_over_the_back_off_up_to_its_cap() -> None:
    naps = Naps()
    limited = ModelFailure.RATE_LIMITED
    model = FakeChatModel(in_turn(failing(limited, 7.5), failing(limited, 9999.0), failing(limited, 0.0), "ok"))
    await Retried(model, sleep=naps, draw=lambda: 0.0).chat(ASK, EventLog().root())
    assert naps.seconds == [7.5, Backoff().max_retry_after_s, 0.0]


async def test_a_bug_is_not_retried() -> None:
    model = FakeChatModel(in_turn(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        await Retried(model, sleep=Naps()).chat(ASK, EventLog().root())
    assert len(model.calls) == 1


async def test_the_back_off_holds_no_slot() -> None:
    throttle = Throttle(1)
    taken: list[int] = []

    async def nap(seconds: float) -> None:
        taken.append(throttle.taken)

    model = FakeChatModel(in_turn(failing(ModelFailure.SERVER), "ok"))
    await Retried(Throttled(model, throttle), sleep=nap).chat(ASK, EventLog().root())
    assert taken == [0]


def test_no_attempts_is_refused() -> None:
    with pytest.raises(InvalidInput, match="max_attempts"):
        Retried(FakeChatModel(lambda messages: ""), 0)


@given(attempt=st.integers(1, 5000), share=st.floats(0, 1, exclude_max=True))
def test_every_wait_lies_between_half_of_the_base_and_the_base(attempt: int, share: float) -> None:
    backoff = Backoff(first_s=0.5, max_s=30.0)
    base = min(30.0, 0.5 * 2.0 ** min(attempt - 1, 60))
    assert base / 2 <= backoff.wait_s(attempt, None, lambda: share) <= base


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": email.utils.formatdate(1_000_060, usegmt=True)}, 60.0),
        ({"retry-after": email.utils.formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_each_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1_000_000) == seconds
