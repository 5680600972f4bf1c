"""What one guest may take of the host's loop: honest code gets slower at most, hostile code ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from orchestrator.sandbox import pace
from orchestrator.sandbox.hearing import Hearing
from orchestrator.sandbox.pace import Pace, TooFast
from orchestrator.sandbox.wire import ProtocolViolation


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def repeat(times: int, do: Callable[[], None]) -> None:
    for _ in range(times):
        do()


def test_a_batch_of_ten_thousand_and_thousands_of_calls_are_not_held_up() -> None:
    kept = Pace(Clock())
    for cost in (10_000 * pace.QUESTION_S, 48 * (1 << 20) * pace.BYTE_S, 60 * (1 << 20) * pace.BYTE_S):
        kept.charge(cost)
    for _ in range(10_000):
        kept.charge(pace.CALL_S + pace.QUESTION_S)
    assert kept.wait_s() == 0


def test_who_waits_is_never_lost_however_much_is_asked() -> None:
    clock = Clock()
    kept = Pace(clock)
    for _ in range(1_000):
        clock.now += kept.wait_s()
        assert kept.wait_s() == pytest.approx(0)
        kept.charge(pace.CALL_S + 10_000 * pace.QUESTION_S + 64 * (1 << 20) * pace.BYTE_S)
    assert clock.now > 1_000  # it was held up, though


def test_who_does_not_wait_is_too_fast() -> None:
    kept = Pace(Clock())
    with pytest.raises(TooFast):
        repeat(100_000, lambda: kept.charge(pace.CALL_S))


def test_a_thousand_refusals_are_too_many_and_the_few_of_a_race_are_not() -> None:
    clock = Clock()
    kept = Pace(clock)
    for _ in range(1_000):  # each cell ends with some calls under way
        clock.now += 1.0
        for _ in range(20):
            kept.charge(pace.CALL_S + pace.REFUSED_S)
    assert kept.wait_s() == 0
    with pytest.raises(TooFast):
        repeat(1_000, lambda: kept.charge(pace.CALL_S + pace.REFUSED_S))


async def test_heartbeats_that_piled_up_while_this_process_stood_still_are_no_flood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silences: list[float] = []
    hearing = Hearing(30, silences.append)
    clock = Clock()
    monkeypatch.setattr(hearing, "_loop", _Loop(clock))
    hearing.begin()
    clock.now = 215.0  # Ctrl-Z, and fg
    for _ in range(107):
        hearing.heard()
        hearing.heartbeat()
    with pytest.raises(ProtocolViolation):
        repeat(1_000, hearing.heartbeat)
    assert silences == []


class _Loop:
    """As much of an event loop as `Hearing` uses, at a time of the test's own."""

    def __init__(self, clock: Clock) -> None:
        self.time = clock

    def call_later(self, delay: float, callback: object, *args: object) -> asyncio.TimerHandle | None:
        return None
