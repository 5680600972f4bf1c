"""How much of a cell's time is not the code's."""

from __future__ import annotations

import pytest

from orchestrator.sandbox import waits
from orchestrator.sandbox.waits import Waits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_many_wait_for_at_a_time_counts_once_and_a_pause_beside_an_answer_not_at_all(clock: Clock) -> None:
    cell = Waits(100, clock)
    assert (cell.now, cell.waited_s) == (False, 0)
    clock.now = 1
    cell.begin_pause()
    clock.now = 2
    cell.begin_answer()
    cell.begin_answer()
    clock.now = 4
    cell.end_answer()
    clock.now = 7
    assert (cell.now, cell.waited_s) == (True, 6)
    cell.end_answer()
    clock.now = 8
    assert (cell.now, cell.waited_s) == (True, 7)
    cell.end_pause()
    clock.now = 100
    assert (cell.now, cell.waited_s) == (False, 7)


def test_answers_are_waited_for_as_long_as_they_take_and_the_rest_only_so_long(clock: Clock) -> None:
    cell = Waits(10, clock)
    with cell.paused():
        clock.now = 50
        assert cell.waited_s == cell.guest_excused_s == cell.excused_s == 10
    cell.begin_answer()
    clock.now = 150
    cell.end_answer()
    assert cell.waited_s == cell.guest_excused_s == cell.excused_s == 110


def test_an_answer_is_worth_a_little_to_the_guest_within_the_bound_and_more_to_the_hosts_own_limit(
    clock: Clock,
) -> None:
    cell = Waits(10, clock)
    for _ in range(100):
        cell.answered()
    assert cell.guest_excused_s == pytest.approx(100 * waits._GUEST_ALLOWANCE_S)
    assert cell.excused_s == pytest.approx(100 * waits._ALLOWANCE_S)
    for _ in range(10_000):
        cell.answered()
    assert cell.guest_excused_s == 10
    assert cell.waited_s == 0
