"""The timer that cells take turns with. The clock is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVarTuple

import pytest

from orchestrator.sandbox.alarm import Alarm

A_DAY = 86_400.0

Ts = TypeVarTuple("Ts")


class ByHand(asyncio.SelectorEventLoop):
    """A loop whose time passes when it is told, and that remembers its timers and what they raised."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.timers: list[asyncio.TimerHandle] = []
        self.raised: list[object] = []
        self.set_exception_handler(lambda _, context: self.raised.append(context.get("exception")))

    def time(self) -> float:
        return self.now

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self.timers.append(super().call_at(when, callback, *args, context=context))
        return self.timers[-1]

    async def pass_(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(3):  # its timers, and what those have set anew
            await asyncio.sleep(0)


def _run(test: Callable[[ByHand, Alarm, list[float]], Coroutine[Any, Any, None]]) -> None:
    loop = ByHand()

    async def main() -> None:
        await test(loop, Alarm(), [])
        # An exception of a callback only comes to this handler.
        assert loop.raised == []

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def _notes(loop: ByHand, rung: list[float]) -> Callable[[], None]:
    return lambda: rung.append(loop.now)


def test_it_calls_once_when_it_is_due() -> None:
    async def test(loop: ByHand, alarm: Alarm, rung: list[float]) -> None:
        alarm.set(60, _notes(loop, rung))
        await loop.pass_(59.9)
        assert rung == []
        await loop.pass_(0.1)
        await loop.pass_(A_DAY)
        assert rung == [1_060.0]

    _run(test)


@pytest.mark.parametrize("second_s", [5.0, 60.0, 300.0])
def test_what_it_is_set_for_last_counts(second_s: float) -> None:
    async def test(loop: ByHand, alarm: Alarm, rung: list[float]) -> None:
        alarm.set(60, lambda: pytest.fail("this was replaced"))
        await loop.pass_(1)
        alarm.set(second_s, _notes(loop, rung))
        for _ in range(400):
            await loop.pass_(1)
        assert rung == [1_001.0 + second_s]
        assert loop.timers[0].cancelled() == (second_s < 59)

    _run(test)


def test_once_cleared_it_does_not_call_but_can_be_set_again() -> None:
    async def test(loop: ByHand, alarm: Alarm, rung: list[float]) -> None:
        alarm.set(60, lambda: pytest.fail("this was cleared"))
        alarm.clear()
        await loop.pass_(A_DAY)
        alarm.set(60, _notes(loop, rung))
        await loop.pass_(60)
        assert rung == [loop.now]

    _run(test)


def test_what_it_calls_may_set_it_again() -> None:
    async def test(loop: ByHand, alarm: Alarm, rung: list[float]) -> None:
        def again() -> None:
            rung.append(loop.now)
            if len(rung) < 3:
                alarm.set(10, again)

        alarm.set(10, again)
        for _ in range(100):
            await loop.pass_(1)
        assert rung == [1_010.0, 1_020.0, 1_030.0]

    _run(test)


def test_a_thousand_short_cells_take_one_timer() -> None:
    async def test(loop: ByHand, alarm: Alarm, _: list[float]) -> None:
        for _cell in range(1_000):
            alarm.set(60, lambda: pytest.fail("all of them have ended"))
            await loop.pass_(0.01)
            alarm.clear()
        assert len(loop.timers) == 1

    _run(test)


def test_once_closed_it_leaves_nothing_behind() -> None:
    async def test(loop: ByHand, alarm: Alarm, _: list[float]) -> None:
        alarm.set(60, lambda: pytest.fail("it was closed"))
        alarm.close()
        alarm.close()
        assert [timer.cancelled() for timer in loop.timers] == [True]
        await loop.pass_(A_DAY)

    _run(test)


def test_a_timer_that_comes_a_little_early_calls_all_the_same() -> None:
    """As a loop's do, by the resolution of its clock."""

    async def test(loop: ByHand, alarm: Alarm, rung: list[float]) -> None:
        alarm.set(60, _notes(loop, rung))
        await loop.pass_(60 - loop._clock_resolution / 2)  # type: ignore[attr-defined]
        assert len(rung) == 1
        assert len(loop.timers) == 1

    _run(test)
