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
from orchestrator.values import CellStatus, Completion, Deadline, Ending, FailureReason, Message
from tests.unit.rlm_world import World, code, depth_of, is_leaf, replies


def test_a_margin_is_kept_at_each_level() -> None:
    root = Deadline(100.0, 100.0)
    assert root.sooner(0.0).at == 90.0
    assert root.sooner(0.0).sooner(0.0).at == 81.0
    assert root.sooner(100.5).at == 100.0
    assert Deadline(10_000.0, 10_000.0).sooner(0.0).at == 9_970.0


async def hang() -> str:
    await asyncio.Event().wait()
    raise AssertionError


def check(world: World) -> None:
    world.assert_nothing_is_left()
    replay(world.records)


async def test_a_cell_sees_the_answers_that_were_in_time_and_why_others_are_not_there(tmp_path: Path) -> None:
    async def policy(messages: Sequence[Message]) -> str:
        if is_leaf(messages):
            return await hang() if "slow" in messages[0].content else "here"
        return code("a = llm_batch(['quick', 'slow'])", "FINAL([a[0], a[1].reason, str(a[1])])")

    world = World(tmp_path, policy)
    completion = await world.ask(seconds=0.4)
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
    assert await world.ask(seconds=0.4) == Completion("about seven", Ending.BEST_EFFORT)
    assert [(event.number, event.last_resort) for event in world.all_of(IterationStarted)] == [
        (1, False),
        (2, False),  # was given up
        (2, True),
    ]
    assert world.outcomes(SpanKind.MODEL) == [Outcome.OK, Outcome.CANCELLED, Outcome.OK]
    (short,) = world.all_of(TimeRanShort)
    assert 0 < short.seconds_left < 0.2
    assert "looked" in world.chat.calls[-1].messages[-1].content
    check(world)


async def test_a_cell_that_runs_on_is_interrupted_and_told_of(tmp_path: Path) -> None:
    spin = code("print('before')", "while True: pass") + "\n" + code("print('never')")
    world = World(tmp_path, replies(spin, "what I have"))
    assert await world.ask(seconds=0.4) == Completion("what I have", Ending.BEST_EFFORT)
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
    assert await world.ask(seconds=0.4) == Completion("42", Ending.FINAL)
    check(world)


async def test_without_even_a_last_answer_the_run_ends_by_its_deadline(tmp_path: Path) -> None:
    world = World(tmp_path, lambda _: hang())
    with pytest.raises(DeadlineExceeded, match=r"max_seconds=0\.2 s"):
        await world.ask(seconds=0.2)
    assert world.outcomes(SpanKind.MODEL) == [Outcome.CANCELLED, Outcome.CANCELLED]
    check(world)


async def test_a_sub_rlm_wraps_up_before_its_parent_must(tmp_path: Path) -> None:
    async def policy(messages: Sequence[Message]) -> str:
        if depth_of(messages) == 0:
            return code("FINAL(llm_query('dig'))")
        return "dug a bit" if "time for this task is over" in messages[-1].content else await hang()

    world = World(tmp_path, policy, max_depth=2)
    assert await world.ask(seconds=0.6) == Completion("dug a bit", Ending.FINAL)
    assert [event.ending for event in world.all_of(RlmEnded)] == [Ending.BEST_EFFORT, Ending.FINAL]
    check(world)


async def test_a_question_that_is_asked_too_late_costs_nothing(tmp_path: Path) -> None:
    spin = "while not getattr(a := llm_query('x' * len(asked)), 'failed', False): asked.append(1)"
    first = code("asked = []", spin, "n = len(asked)", "b = llm_query('afterward')", "FINAL(b.reason)")
    world = World(tmp_path, lambda messages: "yes" if is_leaf(messages) else first)
    assert (await world.ask(seconds=0.3)).text == "deadline"
    late = world.all_of(QueryStarted)[-1]
    assert late.prompt == "afterward"
    assert not any("afterward" in call.messages[0].content for call in world.chat.calls)
    check(world)


async def test_a_run_without_a_limit_has_all_the_time(tmp_path: Path) -> None:
    world = World(tmp_path, lambda messages: "yes" if is_leaf(messages) else code("FINAL(llm_query('q'))"))
    assert (await world.ask()).text == "yes"
    assert all(event.outcome is Outcome.OK for event in world.all_of(ModelCallEnded))
    check(world)
