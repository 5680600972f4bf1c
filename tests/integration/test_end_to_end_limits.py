"""What a whole tree may use holds while a cell runs, not only between iterations, and counts for all depths."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from orchestrator.errors import BudgetExceeded, DeadlineExceeded
from orchestrator.events import (
    CellEnded,
    Outcome,
    QueryEnded,
    QueryStarted,
    RlmEnded,
    RunEnded,
    SubCallChoice,
    TimeRanShort,
)
from orchestrator.testing.scripted import ApiError, ChatRequest, Hang, Policy, Reply, Usage, always, constant, sequence
from orchestrator.testing.scripted import Outcome as Outcome_
from orchestrator.values import CellStatus, Ending, FailureReason
from orchestrator.values import Usage as Used
from tests.integration.e2e_world import reply, world

pytestmark = pytest.mark.docker

LOOP = """
import json

answered, refused = 0, []
for number in range(40):
    found = llm_query(f"question {number}")
    if getattr(found, "failed", False):
        refused.append(found.reason)
    else:
        answered += 1
FINAL(json.dumps([answered, refused]))
"""
PRICED = {"depth-0": {"input": 1.0, "output": 10.0}, "leaf": {"input": 1.0, "output": 10.0}}
LEAF = Reply("yes", usage=Usage(prompt_tokens=100, completion_tokens=50))  # 600 millionths of a dollar at that price


async def test_a_loop_of_calls_stops_at_max_calls_within_its_cell() -> None:
    async with world({"depth-0": constant(reply(LOOP)), "leaf": always(LEAF)}) as w:
        result = await w.ask(max_calls=8)
        answered, refused = json.loads(result.answer)
        assert (answered, len(refused), set(refused)) == (7, 33, {FailureReason.BUDGET.value})
        assert len(w.server.requests) == result.spent.calls == 8


async def test_one_batch_cannot_pass_max_calls_either() -> None:
    code = "found = llm_batch([f'q {n}' for n in range(30)])\nFINAL(str(sum(f.startswith('Error: ') for f in found)))"
    async with world({"depth-0": constant(reply(code)), "leaf": always(LEAF)}) as w:
        assert (await w.ask(max_calls=11)).answer == "20"
        assert len(w.server.requests) == 11


@pytest.mark.parametrize("limit", [{"max_tokens": 20_000}, {"max_cost_usd": 0.02}])
async def test_tokens_and_cost_are_held_to_their_limits_within_a_cell(limit: dict[str, Any]) -> None:
    loop = LOOP.replace("40", "200").replace('f"question {number}"', '"x" * 400 + str(number)')
    leaf = Reply("yes", usage=Usage(prompt_tokens=110, completion_tokens=90))
    async with world({"depth-0": constant(reply(loop)), "leaf": always(leaf)}, prices=PRICED) as w:
        result = await w.ask(max_output_tokens=100, **limit)
        answered, refused = json.loads(result.answer)
        assert answered > 3
        assert set(refused) == {FailureReason.BUDGET.value}
        assert result.spent.usage.total_tokens <= limit.get("max_tokens", 10**9)
        assert result.spent.cost_usd <= limit.get("max_cost_usd", 10**9)
        assert result.spent.unpriced_calls == 0


async def test_the_budget_is_one_for_all_depths() -> None:
    policies: dict[str, Policy] = {
        "depth-0": constant(reply("FINAL('|'.join(llm_batch(['a', 'b', 'c'], max_concurrent=1)))")),
        "depth-1": constant(reply("FINAL(str([llm_query(context + str(n))[:3] for n in range(4)]))")),
        "leaf": always(LEAF),
    }
    async with world(policies) as w:
        # 1 of the root, 5 of the first child, and of the second its own and one leaf call.
        result = await w.ask(max_calls=8)
        first, second, third = result.answer.split("|")
        assert first == str(["yes"] * 4)
        assert second == str(["yes"] + ["Err"] * 3)
        assert third.startswith("Error: ")
        assert len(w.server.requests) == 8


async def test_a_run_out_of_budget_between_cells_ends_with_the_limit_by_name() -> None:
    steps = sequence([reply("print(llm_query('one'))"), reply("FINAL('too late')")])
    async with world({"depth-0": steps, "leaf": always(LEAF)}) as w:
        with pytest.raises(BudgetExceeded) as raised:
            await w.ask(max_calls=2)
        assert (raised.value.limit, raised.value.allowed, raised.value.used) == ("max_calls", 2, 2)
        (end,) = w.events(RunEnded)
        assert (end.outcome, end.spent.calls) == (Outcome.FAILED, 2)


async def test_totals_hold_the_childrens_usage_by_model_and_by_depth() -> None:
    def planned(code: str, tokens: int) -> Policy:
        return always(Reply(reply(code), usage=Usage(prompt_tokens=tokens, completion_tokens=10)))

    policies: dict[str, Policy] = {
        "depth-0": planned("FINAL(str(llm_batch(['a', 'b'])))", 1000),
        "depth-1": planned("FINAL(str(llm_batch([context + n for n in '123'])))", 500),
        "leaf": always(LEAF),
    }
    async with world(policies, prices={**PRICED, "depth-1": {"input": 2.0, "output": 20.0}}) as w:
        result = await w.ask()
        by_model = {name: (spent.calls, spent.usage) for name, spent in result.by_model.items() if spent.calls}
        assert by_model == {
            "depth-0": (1, Used(1000, 10)),
            "depth-1": (2, Used(1000, 20)),
            "leaf": (6, Used(600, 300)),
        }
        assert {depth: spent.usage for depth, spent in result.by_depth.items()} == {
            0: Used(1000, 10),
            1: Used(1000, 20),
            2: Used(600, 300),
        }
        assert {depth: spent.sandboxes for depth, spent in result.by_depth.items()} == {0: 1, 1: 2, 2: 0}
        assert result.spent.usage == Used(2600, 330)
        assert result.spent.cost_usd == pytest.approx((1000 + 100 + 2000 + 400 + 600 + 3000) / 1e6)


async def test_time_that_runs_out_below_is_told_in_slots_while_there_is_time_for_an_answer() -> None:
    policies: dict[str, Policy] = {
        "depth-0": constant(reply("FINAL(str(llm_batch(['a', 'b'])))")),
        "depth-1": constant(reply("answer = llm_query(context)\nFINAL(f'{context}: {answer.reason}')")),
        "leaf": always(Hang()),
    }
    async with world(policies) as w:
        result = await w.ask(max_seconds=4)
        assert (result.answer, result.ending) == ("['a: deadline', 'b: deadline']", Ending.FINAL)
        await w.server.wait_for(lambda log: log.in_flight == 0)
        assert {end.outcome for end in w.events(RlmEnded)} == {Outcome.OK}
        assert w.events(TimeRanShort) == []


async def test_near_the_end_of_its_time_a_run_gives_what_it_has() -> None:
    def think(request: ChatRequest) -> Outcome_:
        if "time for this task is over" in request.last_user:
            return Reply("what I have")
        return Reply(reply("while True: pass"))

    async with world({"depth-0": think}) as w:
        result = await w.ask(max_seconds=4)
        assert (result.answer, result.ending) == ("what I have", Ending.BEST_EFFORT)
        assert [cell.result.status for cell in w.events(CellEnded) if cell.result] == [CellStatus.INTERRUPTED]


async def test_max_seconds_ends_the_whole_tree_with_calls_in_flight() -> None:
    policies: dict[str, Policy] = {
        "depth-0": sequence([reply("kept = llm_batch(['a', 'b'])")], after=Hang()),
        "depth-1": always(Hang()),
        "leaf": always(Hang()),
    }
    async with world(policies) as w:
        with pytest.raises(DeadlineExceeded, match=r"max_seconds=3 s"):
            await w.ask(max_seconds=3)
        await w.server.wait_for(lambda log: log.in_flight == 0)
        assert {end.outcome for end in w.events(RlmEnded)} == {Outcome.CANCELLED}


async def test_a_strict_batch_cancels_its_rest_at_the_first_failure() -> None:
    code = """
        try:
            llm_batch(["bad", "slow", "slower"], strict=True)
        except SubcallFailed as error:
            FINAL(error.reason)
    """

    def leaf(request: ChatRequest) -> Outcome_:
        return ApiError(400, "no") if request.last_user == "bad" else Hang()

    async with world({"depth-0": constant(reply(textwrap.dedent(code))), "leaf": leaf}) as w:
        result = await w.ask()
        assert result.answer == FailureReason.MODEL.value
        assert [(batch.size, batch.failed) for batch in result.by_batch] == [(3, 3)]
        await w.server.wait_for(lambda log: log.in_flight == 0)
        assert [end.outcome for end in w.events(QueryEnded)].count(Outcome.CANCELLED) == 2


async def test_small_questions_need_no_container_with_adaptive_depth() -> None:
    code = "FINAL(str([llm_query('small'), llm_query('x' * 30_000)[:5], rlm_query('by name')]))"
    policies: dict[str, Policy] = {
        "depth-0": constant(reply(code)),
        "depth-1": lambda request: Reply("plain" if len(request.messages) == 1 else reply("FINAL('agent')")),
        "leaf": always(LEAF),
    }
    async with world(policies, adaptive_depth=True) as w:
        result = await w.ask()
        assert result.answer == "['plain', 'agent', 'agent']"
        assert result.spent.sandboxes == 3
        assert [(e.recursive, e.choice) for e in w.events(QueryStarted)] == [
            (False, SubCallChoice.SIZE),
            (True, SubCallChoice.SIZE),
            (True, SubCallChoice.CODE),
        ]
