"""Time that runs out: it shrinks down the tree, and each level has some left to make use of what came back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.errors import DeadlineExceeded
from orchestrator.events import (
    CellEnded,
    IterationStarted,
    ModelCallEnded,
    Outcome,
    QueryEnded,
    QueryStarted,
    RlmEnded,
    SpanKind,
    TimeRanShort,
)
from orchestrator.rlm.replay import replay
from orchestrator.values import CellStatus, Completion, Ending, FailureReason, Message
from tests.unit.rlm_world import World, code, depth_of, is_leaf, replies

WORK_S, MARGIN_S = 0.4, 9.6  # a busy machine has time enough to make use of what came back
LIMIT_S = WORK_S + MARGIN_S


@pytest.fixture(autouse=True)
def _nearly_all_is_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.values._MARGIN_SHARE", MARGIN_S / LIMIT_S)


async def hang() -> str:
    await asyncio.Event().wait()
    raise AssertionError


def check(world: World) -> None:
    world.assert_nothing_is_left()
    replay(world.records)


async def test_a_cell_sees_the_answers_that_were_in_time_and_why_others_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.values._MARGIN_SHARE", 0.7)  # of what is left at each level

    async def policy(messages: Sequence[Message]) -> str:
        if is_leaf(messages):
            return await hang() if "slow" in messages[0].content else "here"
        return code("a = llm_batch(['quick', 'slow'])", "FINAL([a[0], a[1].reason, str(a[1])])")

    world = World(tmp_path, policy)
    completion = await world.ask(seconds=LIMIT_S)
    late = "Error: the run's time is over; finish with what you have"
    assert completion == Completion(f'["here", "deadline", "{late}"]', Ending.FINAL)
    assert [event.failure for event in world.all_of(QueryEnded)] == [None, FailureReason.DEADLINE]
    assert world.all_of(TimeRanShort) == []
    check(world)


async def test_near_the_end_the_root_is_asked_for_its_best_answer(tmp_path: Path) -> None:
    async def policy(messages: Sequence[Message]) -> str:
        if "time for this task is over" in messages[-1].content:
            return "about seven"
        return await hang() if len(messages) > 2 else code("print('looked')")

    world = World(tmp_path, policy)
    assert await world.ask(seconds=LIMIT_S) == Completion("about seven", Ending.BEST_EFFORT)
    assert [(event.number, event.last_resort) for event in world.all_of(IterationStarted)] == [
        (1, False),
        (2, False),  # was given up
        (2, True),
    ]
    assert world.outcomes(SpanKind.MODEL) == [Outcome.OK, Outcome.CANCELLED, Outcome.OK]
    (short,) = world.all_of(TimeRanShort)
    assert 0 < short.seconds_left < MARGIN_S + 0.1
    assert "looked" in world.chat.calls[-1].messages[-1].content
    check(world)


async def test_a_cell_that_runs_on_is_interrupted_and_told_of(tmp_path: Path) -> None:
    spin = code("print('before')", "while True: pass") + "\n" + code("print('never')")
    world = World(tmp_path, replies(spin, "what I have"))
    assert await world.ask(seconds=LIMIT_S) == Completion("what I have", Ending.BEST_EFFORT)
    (ended,) = world.all_of(CellEnded)
    assert ended.result is not None
    assert ended.result.status is CellStatus.INTERRUPTED
    told = world.chat.calls[-1].messages[-1].content
    assert "before" in told
    assert "was interrupted from outside" in told
    check(world)


async def test_an_answer_that_is_there_in_time_is_no_best_effort(tmp_path: Path) -> None:
    """The cell gives it, and is then in the way."""
    world = World(tmp_path, replies(code("FINAL(42)", "while True: pass")))
    assert await world.ask(seconds=LIMIT_S) == Completion("42", Ending.FINAL)
    check(world)


async def test_without_even_a_last_answer_the_run_ends_by_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.values._MARGIN_SHARE", 0.5)
    world = World(tmp_path, lambda _: hang())
    with pytest.raises(DeadlineExceeded, match=r"max_seconds=1 s"):
        await world.ask(seconds=1.0)
    assert world.outcomes(SpanKind.MODEL) == [Outcome.CANCELLED, Outcome.CANCELLED]
    check(world)


async def test_a_sub_rlm_wraps_up_before_its_parent_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.values._MARGIN_SHARE", 0.8)

    async def policy(messages: Sequence[Message]) -> str:
        if depth_of(messages) == 0:
            return code("FINAL(llm_query('dig'))")
        return "dug a bit" if "time for this task is over" in messages[-1].content else await hang()

    world = World(tmp_path, policy, max_depth=2)
    assert await world.ask(seconds=LIMIT_S) == Completion("dug a bit", Ending.FINAL)
    assert [event.ending for event in world.all_of(RlmEnded)] == [Ending.BEST_EFFORT, Ending.FINAL]
    check(world)


async def test_a_question_that_is_asked_too_late_costs_nothing(tmp_path: Path) -> None:
    spin = "while not getattr(a := llm_query('x' * len(asked)), 'failed', False): asked.append(1)"
    first = code("asked = []", spin, "n = len(asked)", "b = llm_query('afterward')", "FINAL(b.reason)")
    world = World(tmp_path, lambda messages: "yes" if is_leaf(messages) else first)
    assert (await world.ask(seconds=LIMIT_S)).text == "deadline"
    late = world.all_of(QueryStarted)[-1]
    assert late.prompt == "afterward"
    assert not any("afterward" in call.messages[0].content for call in world.chat.calls)
    check(world)


async def test_a_run_without_a_limit_has_all_the_time(tmp_path: Path) -> None:
    world = World(tmp_path, lambda messages: "yes" if is_leaf(messages) else code("FINAL(llm_query('q'))"))
    assert (await world.ask()).text == "yes"
    assert all(event.outcome is Outcome.OK for event in world.all_of(ModelCallEnded))
    check(world)
