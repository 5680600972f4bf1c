"""One limit for all requests of a process."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.errors import InvalidInput
from orchestrator.events import EventLog, Span
from orchestrator.llm.throttle import Throttle, Throttled
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.values import Message, Role


def ask(text: str) -> tuple[Message, ...]:
    return (Message(Role.USER, text),)


async def tree(chat: Throttled, span: Span, depth: int) -> None:
    """A parent asks its model, then waits for two children, as recursive calls do."""
    await chat.chat(ask(f"at {depth}"), span)
    if depth:
        await asyncio.gather(*(tree(chat, span, depth - 1) for _ in range(2)))


async def test_concurrency_does_not_multiply_with_depth() -> None:
    model = FakeChatModel(lambda messages: "ok")
    throttle = Throttle(2)
    levels = [Throttled(model, throttle) for _ in range(4)]  # one a depth, as models may differ
    await asyncio.gather(*(tree(level, EventLog().root(), 3) for level in levels))
    assert len(model.calls) == 4 * 15
    assert model.peak_in_flight == 2


async def test_a_tree_deeper_than_the_limit_finishes() -> None:
    model = FakeChatModel(lambda messages: "ok")
    async with asyncio.timeout(30):
        await tree(Throttled(model, Throttle(1)), EventLog().root(), 5)
    assert model.peak_in_flight == 1


async def test_slots_are_given_in_the_order_of_asking() -> None:
    model = FakeChatModel(lambda messages: "ok")
    chat = Throttled(model, Throttle(1))
    await asyncio.gather(*(chat.chat(ask(str(number)), EventLog().root()) for number in range(20)))
    assert [call.messages[0].content for call in model.calls] == [str(number) for number in range(20)]


async def test_a_cancelled_request_gives_its_slot_back() -> None:
    model = FakeChatModel(lambda messages: "ok")
    throttle = Throttle(1)
    chat = Throttled(model, throttle)
    model.gate.clear()
    held = asyncio.create_task(chat.chat(ask("held"), EventLog().root()))
    await model.until(lambda: model.in_flight == 1)
    queued = asyncio.create_task(chat.chat(ask("queued"), EventLog().root()))
    held.cancel()
    await model.until(lambda: len(model.calls) == 2)
    model.gate.set()
    assert (await queued).text == "ok"
    assert throttle.taken == 0


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="max_concurrent"):
        Throttle(0)
