"""What the ready policies answer."""

import asyncio
from typing import Any

import pytest

from orchestrator.testing.scripted import (
    ApiError,
    ChatRequest,
    Outcome,
    Reply,
    any_user_has,
    ask,
    by_depth,
    constant,
    echo,
    held_until,
    last_user_has,
    last_user_matches,
    parse_request,
    rendezvous,
    route,
    sequence,
    system_has,
)


def asking(*texts: str, system: str = "") -> ChatRequest:
    """A conversation of user and assistant turns in alternation, the user first."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    messages += [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return parse_request({"model": "m", "messages": messages})


async def text_of(policy: Any, request: ChatRequest) -> str | None:
    outcome = await ask(policy, request)
    assert isinstance(outcome, Reply)
    return outcome.text


async def test_echo_answers_with_the_last_user_message() -> None:
    assert await text_of(echo, asking("one", "reply", "two")) == "two"


async def test_a_sequence_goes_by_the_turns_of_the_conversation_and_not_by_the_order_of_the_calls() -> None:
    script = sequence(["first", Reply("second", "length"), lambda request: Reply(request.last_user)])

    assert await text_of(script, asking("q", "first", "output", "second", "third?")) == "third?"
    assert await text_of(script, asking("q")) == "first"
    assert await text_of(script, asking("q")) == "first"
    assert await ask(script, asking("q", "first", "output")) == Reply("second", "length")


async def test_a_sequence_that_has_ended_says_so() -> None:
    outcome = await ask(sequence(["only"]), asking("q", "only", "more?"))

    assert isinstance(outcome, ApiError)
    assert (outcome.status, outcome.code) == (400, "script_ended")
    assert "has 1 steps" in outcome.message
    assert "turn 2" in outcome.message


async def test_a_sequence_may_say_what_follows_its_end() -> None:
    assert await text_of(sequence(["only"], after="done"), asking("q", "only", "more?")) == "done"


def test_a_single_text_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(TypeError, match=r"sequence\(\[text\]\)"):
        sequence("text")


async def test_a_route_takes_the_first_predicate_that_holds() -> None:
    policy = route(
        (system_has("REPL"), "root"),
        (last_user_matches(r"^\d+$"), "a number"),
        (last_user_has("red"), sequence(["red"])),
        (any_user_has("blue"), "blue"),
        otherwise=echo,
    )

    assert await text_of(policy, asking("12", system="You have a REPL.")) == "root"
    assert await text_of(policy, asking("12")) == "a number"
    assert await text_of(policy, asking("a red box")) == "red"
    assert await text_of(policy, asking("a blue box", "yes", "and?")) == "blue"
    assert await text_of(policy, asking("a box")) == "a box"


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("You are at depth 0 of 2.", "root"),
        ("[Depth 1] You have a REPL.", "deeper"),
        ("depth=7", "deeper"),
        ("In-depth answers only.", "leaf"),
        ("", "leaf"),
    ],
)
async def test_by_depth_reads_the_system_prompt(system: str, expected: str) -> None:
    policy = by_depth(["root", "deeper"], leaf="leaf")

    assert await text_of(policy, asking("q", system=system)) == expected


async def test_by_depth_takes_another_rule_for_the_depth() -> None:
    policy = by_depth(["root", "deeper"], leaf="leaf", depth_of=lambda request: request.assistant_turns)

    assert await text_of(policy, asking("q", "r", "q2")) == "deeper"


async def test_a_rendezvous_answers_nobody_before_everybody_is_there() -> None:
    policy = rendezvous(2, constant("here"))
    first = asyncio.ensure_future(ask(policy, asking("1")))
    await asyncio.sleep(0)
    assert not first.done()

    assert await ask(policy, asking("2")) == await first == Reply("here")


async def test_a_held_policy_answers_after_its_event() -> None:
    event = asyncio.Event()
    held = asyncio.ensure_future(ask(held_until(event, "now"), asking("1")))
    await asyncio.sleep(0)
    assert not held.done()

    event.set()

    assert await held == Reply("now")


async def test_a_policy_that_returns_a_bare_text_is_told_what_to_return() -> None:
    def policy(request: ChatRequest) -> Outcome:
        return "text"  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"Reply\(text\)"):
        await ask(policy, asking("q"))
