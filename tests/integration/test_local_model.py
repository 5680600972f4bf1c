"""A real model behind a real server, both from the package index: what it does on the wire, never what it says.

The scripted server could share a misunderstanding with our client; llama.cpp's server cannot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from examples.demo.local_model import MODEL, serving
from orchestrator.events import EventLog, Span
from orchestrator.llm.openai_chat import OpenAIChat
from orchestrator.llm.openai_client import open_client
from orchestrator.testing.scripted import Policy, constant
from orchestrator.values import FinishReason, Message, Role
from tests.integration.e2e_world import reply, world

pytest.importorskip("xllamacpp", reason="the extra 'local-model' is not installed: EXTRAS=dev,local-model make setup")
pytestmark = pytest.mark.slow

ASK = (Message(Role.USER, "Write a long story about a cat and a dog who travel around the whole world."),)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
async def chat(base_url: str) -> AsyncIterator[OpenAIChat]:
    async with open_client("not-needed", base_url, timeout=60) as client:
        yield OpenAIChat(client, MODEL, max_output_tokens=200, options={"temperature": 0})


def _span() -> Span:
    return EventLog().root()


async def test_a_reply_tells_its_usage_and_is_cut_at_the_output_limit(chat: OpenAIChat) -> None:
    answer = await chat.chat(ASK, _span(), max_output_tokens=5)
    assert answer.text
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    assert answer.usage.input_tokens >= 10


async def test_a_streamed_reply_comes_in_pieces_that_make_up_the_whole(chat: OpenAIChat) -> None:
    pieces: list[str] = []
    answer = await chat.chat(ASK, _span(), pieces.append, max_output_tokens=20)
    assert len(pieces) > 5
    assert "".join(pieces) == answer.text
    assert answer.usage is not None
    assert answer.usage.output_tokens == 20
    assert answer.finish_reason is FinishReason.LENGTH


async def test_a_call_can_be_canceled_midway_and_the_next_one_is_answered(chat: OpenAIChat) -> None:
    begun = asyncio.Event()
    call = asyncio.create_task(chat.chat(ASK, _span(), lambda _: begun.set(), max_output_tokens=200))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await chat.chat(ASK, _span(), max_output_tokens=3)).text


@pytest.mark.docker
async def test_code_in_a_container_asks_it(base_url: str) -> None:
    code = """
found = llm_batch(['Say hello.', 'Say goodbye.'])
FINAL(str([bool(f) and not f.startswith('Error: ') for f in found]))
"""
    root: dict[str, Policy] = {"depth-0": constant(reply(code))}
    async with world(
        root, models=("depth-0", MODEL), endpoints={MODEL: {"base_url": base_url}}, max_depth=1, max_output_tokens=64
    ) as w:
        result = await w.ask()
        assert result.answer == "[True, True]"
        told = result.by_model[MODEL]
        assert (told.calls, told.failed_calls, told.estimated_calls) == (2, 0, 0)
        assert 2 <= told.usage.output_tokens <= 128
