"""Recursion in real containers: who is an RLM and who a plain call, with how many iterations and what context."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import orchestrator
from orchestrator import RLM, RLM_REPL
from orchestrator.events import IterationStarted, QueryStarted, RlmStarted
from orchestrator.testing.scripted import Policy, ScriptedServerThread, constant, echo, sequence
from orchestrator.values import Ending
from tests.integration.e2e_world import at, models, reply, world

pytestmark = pytest.mark.docker

ITERATIONS = (20, 10, 6)  # of depths 0, 1 and 2


def chain(max_depth: int) -> dict[str, Policy]:
    """Each depth looks first, then asks the one below, and wraps its answer: 0(1(leaf)) for a depth of 2."""
    policies: dict[str, Policy] = {"leaf": constant("leaf")}
    for depth in range(max_depth):
        steps = [
            reply(f"seen = len(context)\ndepth = {depth}"),
            reply("FINAL(f\"{depth}({llm_query(f'a question from depth {depth}')})\")"),
        ]
        policies[f"depth-{depth}"] = sequence(steps)
    return policies


def wrapped(max_depth: int) -> str:
    return "".join(f"{depth}(" for depth in range(max_depth)) + "leaf" + ")" * max_depth


@pytest.mark.parametrize("max_depth", [1, 2, 3])
async def test_sub_calls_recurse_exactly_to_the_depth(max_depth: int) -> None:
    async with world(chain(max_depth)) as w:
        result = await w.ask("What is down there?", "a context")

        assert (result.answer, result.ending) == (wrapped(max_depth), Ending.FINAL)
        rlms = w.events(RlmStarted)
        assert [rlm.depth for rlm in rlms] == list(range(max_depth))
        assert [rlm.max_iterations for rlm in rlms] == list(ITERATIONS[:max_depth])
        assert [rlm.model for rlm in rlms] == list(models(max_depth)[:-1])
        assert [query.recursive for query in w.events(QueryStarted)] == [d < max_depth - 1 for d in range(max_depth)]
        assert {(step.number, step.of) for step in w.events(IterationStarted)} == {
            (number, of) for of in ITERATIONS[:max_depth] for number in (1, 2)
        }
        assert result.spent.sandboxes == max_depth
        assert {depth: spent.calls for depth, spent in result.by_depth.items()} == {
            **dict.fromkeys(range(max_depth), 2),
            max_depth: 1,
        }


async def test_iterations_below_are_cut_from_the_roots_number_and_the_last_resort_ends_the_child() -> None:
    policies: dict[str, Policy] = {
        "depth-0": sequence([reply("FINAL(llm_query('go on and on'))")]),
        "depth-1": sequence([reply("x = 1")] * 4, after="my best guess"),
        "leaf": echo,
    }
    async with world(policies) as w:
        result = await w.ask(max_iterations=8)

        assert result.answer == "my best guess"
        at_depth_1 = [r.event for r in w.records if r.depth == 1 and isinstance(r.event, IterationStarted)]
        assert [step.number for step in at_depth_1] == [1, 2, 3, 4, 5]
        assert [step.last_resort for step in at_depth_1] == [False] * 4 + [True]


@pytest.mark.parametrize("max_depth", [1, 2, 3])
def test_the_library_answers_in_step_and_awaited(max_depth: int) -> None:
    with ScriptedServerThread(chain(max_depth)) as server:
        rlm = RLM(models=models(max_depth), max_depth=max_depth, **at(server.base_url))
        assert RLM_REPL is RLM
        try:
            assert rlm.completion(context="a context", query="What is down there?") == wrapped(max_depth)
            assert asyncio.run(rlm.acompletion(["another"], "And now?")) == wrapped(max_depth)
            assert rlm.run({"a": 1}, "And what did it take?").spent.sandboxes == max_depth
        finally:
            orchestrator.close()
        assert server.in_flight == 0


@pytest.mark.parametrize(
    ("context", "kind"),
    [
        ("häuser\n", "str"),
        (["one", "two"], "list"),
        ([{"role": "user", "content": "hi"}], "list"),
        ({"a": [1, None, 2.5], "b": {"c": True}}, "dict"),
        (b"\x00\xff raw", "bytes"),
    ],
)
async def test_code_finds_the_context_as_it_was_given(context: object, kind: str) -> None:
    look = reply("print(type(context).__name__)\nFINAL(type(context).__name__ + ' ' + repr(context))")
    async with world({"depth-0": constant(look), "leaf": echo}) as w:
        assert (await w.ask(context=context)).answer == f"{kind} {context!r}"


async def test_a_file_is_a_context(tmp_path: Path) -> None:
    file = tmp_path / "context.txt"
    file.write_text("line\n" * 100_000)
    count = reply("FINAL(str(context.count('line')) + type(context).__name__)")
    async with world({"depth-0": constant(count), "leaf": echo}) as w:
        assert (await w.ask(context=file)).answer == "100000str"
    assert file.read_text() == "line\n" * 100_000


async def test_data_handed_along_is_the_childs_context_and_a_leafs_text() -> None:
    policies: dict[str, Policy] = {
        "depth-0": constant(reply("FINAL(llm_query('How many?', context={'n': [1, 2, 3]}))")),
        "depth-1": constant(
            reply("import json\nFINAL(json.dumps([context, llm_query('Tell.', context=context['n'])]))")
        ),
        "leaf": echo,
    }
    async with world(policies) as w:
        given, told = json.loads((await w.ask()).answer)
        assert given == {"n": [1, 2, 3]}
        assert told.startswith("Tell.")
        assert "[1, 2, 3]" in told.replace("\n", " ").replace("[1,2,3]", "[1, 2, 3]")
        assert [rlm.query for rlm in w.events(RlmStarted)] == ["What is it?", "How many?"]


async def test_ten_runs_of_three_levels_finish_with_room_for_three_sandboxes() -> None:
    async with world(chain(3), capacity=3) as w:
        results = await asyncio.gather(*(w.ask(f"question {number}", "a context") for number in range(10)))
        assert [result.answer for result in results] == [wrapped(3)] * 10
        assert all(result.spent.sandboxes == 3 for result in results)
