"""What every `ChatModel` promises, held by the fake and by the real client at a scripted server alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import pytest

from orchestrator.errors import ModelFailed, ModelFailure
from orchestrator.events import EventLog
from orchestrator.llm.openai_chat import OpenAIChat
from orchestrator.llm.openai_client import open_client
from orchestrator.seams import ChatModel, RequestTally
from orchestrator.testing import scripted
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.values import FinishReason, Message, Reply, Role, Usage

ASK = (Message(Role.SYSTEM, "be brief"), Message(Role.USER, "hello"))


@dataclass(frozen=True)
class Answer:
    """What the model behind a subject says, in words that both sides can act out."""

    text: str | None = "a reply of several pieces"
    finish: FinishReason = FinishReason.STOP
    failure: ModelFailure | None = None
    usage: bool = True


@dataclass
class Subject:
    chat: ChatModel
    in_flight: Callable[[], int]
    until_in_flight: Callable[[int], asyncio.Future[None]]
    release: Callable[[], None]


@asynccontextmanager
async def fake(answer: Answer, *, held: bool = False) -> AsyncIterator[Subject]:
    def policy(messages: object) -> str | Reply | Exception:
        if answer.failure is not None:
            return ModelFailed(answer.failure, "model", "as scripted")
        if answer == Answer():
            return answer.text or ""
        return Reply(answer.text or "", answer.finish, Usage(4, 7) if answer.usage else None, "model")

    model = FakeChatModel(policy, "model")
    if held:
        model.gate.clear()
    yield Subject(
        model,
        lambda: model.in_flight,
        lambda count: asyncio.ensure_future(model.until(lambda: model.in_flight == count)),
        model.gate.set,
    )


_FAILURES = {
    ModelFailure.AUTHENTICATION: scripted.client_error(401),
    ModelFailure.RATE_LIMITED: scripted.rate_limited(),
    ModelFailure.QUOTA: scripted.insufficient_quota(),
    ModelFailure.TOO_LONG: scripted.context_length_exceeded(),
    ModelFailure.NOT_FOUND: scripted.model_not_found("model"),
    ModelFailure.REJECTED: scripted.client_error(400),
    ModelFailure.SERVER: scripted.server_error(503),
}


@asynccontextmanager
async def openai(answer: Answer, *, held: bool = False) -> AsyncIterator[Subject]:
    gate = asyncio.Event()
    if not held:
        gate.set()

    async def policy(request: scripted.ChatRequest) -> scripted.Outcome:
        await gate.wait()
        if answer.failure is not None:
            return _FAILURES[answer.failure]
        usage: scripted.Usage | scripted.UsageReport = scripted.UsageReport.COUNTED
        if answer != Answer():
            usage = scripted.Usage(4, 7) if answer.usage else scripted.UsageReport.OMITTED
        match answer.finish:
            case FinishReason.REFUSAL:
                return scripted.Reply(None, usage=usage, refusal=answer.text)
            case FinishReason.LENGTH:
                return scripted.Reply(answer.text, "length", usage)
            case FinishReason.CONTENT_FILTER:
                return scripted.Reply(answer.text, "content_filter", usage)
            case _:
                return scripted.Reply(answer.text, "stop", usage)

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(scripted.ScriptedServer({"model": policy}))
        client = await stack.enter_async_context(open_client("sk-test-not-a-key", server.base_url, 30.0, 8))
        yield Subject(
            OpenAIChat(client, "model"),
            lambda: server.in_flight,
            lambda count: asyncio.ensure_future(server.wait_for(lambda log: log.in_flight == count)),
            gate.set,
        )


class Open(Protocol):
    def __call__(self, answer: Answer, *, held: bool = False) -> AbstractAsyncContextManager[Subject]: ...


subjects = pytest.mark.parametrize("subject", [fake, openai])
streams = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


async def ask(subject: Subject, streamed: bool, tally: RequestTally | None = None, limit: int | None = None) -> Reply:
    pieces: list[str] = []
    on_text = pieces.append if streamed else None
    reply = await subject.chat.chat(ASK, EventLog().root(), on_text, max_output_tokens=limit, tally=tally)
    if streamed and reply.finish_reason is not FinishReason.REFUSAL:
        assert "".join(pieces) == reply.text
    return reply


@subjects
@streams
async def test_a_reply_has_its_text_usage_and_model(subject: Open, streamed: bool) -> None:
    async with subject(Answer()) as it:
        tally = RequestTally()
        reply = await ask(it, streamed, tally)
    assert reply.text == "a reply of several pieces"
    assert reply.finish_reason is FinishReason.STOP
    assert reply.usage == Usage(4, 7)
    assert reply.model == "model"
    assert not reply.cached
    assert (tally.sent, tally.open) == (1, 0)


@subjects
async def test_a_stream_comes_in_pieces(subject: Open) -> None:
    pieces: list[str] = []
    async with subject(Answer()) as it:
        await it.chat.chat(ASK, EventLog().root(), pieces.append)
    assert len(pieces) > 1


@subjects
@streams
@pytest.mark.parametrize("text", [None, ""])
async def test_a_null_or_empty_answer_is_an_empty_text(subject: Open, streamed: bool, text: str | None) -> None:
    async with subject(Answer(text)) as it:
        reply = await ask(it, streamed)
    assert reply.text == ""
    assert reply.finish_reason is FinishReason.STOP


@subjects
@streams
@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.CONTENT_FILTER, FinishReason.REFUSAL])
async def test_how_a_reply_ended_is_kept(subject: Open, streamed: bool, finish: FinishReason) -> None:
    async with subject(Answer("I will not", finish)) as it:
        reply = await ask(it, streamed)
    assert reply.finish_reason is finish
    assert reply.text == "I will not"


@subjects
@streams
async def test_usage_that_the_api_left_out_is_none(subject: Open, streamed: bool) -> None:
    async with subject(Answer(usage=False)) as it:
        reply = await ask(it, streamed)
    assert reply.usage is None


@subjects
@streams
@pytest.mark.parametrize("kind", list(_FAILURES))
async def test_a_failure_has_its_kind_and_costs_nothing(subject: Open, streamed: bool, kind: ModelFailure) -> None:
    tally = RequestTally()
    async with subject(Answer(failure=kind)) as it:
        with pytest.raises(ModelFailed) as caught:
            await ask(it, streamed, tally)
    assert caught.value.kind is kind
    assert (tally.sent, tally.open) == (1, 0)


@subjects
@streams
async def test_the_output_limit_cuts_the_reply(subject: Open, streamed: bool) -> None:
    async with subject(Answer()) as it:
        reply = await ask(it, streamed, limit=2)
    assert reply.text == "a reply "
    assert reply.finish_reason is FinishReason.LENGTH


@subjects
@streams
async def test_cancelling_ends_the_request_and_leaves_it_open_in_the_tally(subject: Open, streamed: bool) -> None:
    async with subject(Answer(), held=True) as it, asyncio.timeout(30):
        tally = RequestTally()
        task = asyncio.create_task(ask(it, streamed, tally))
        await it.until_in_flight(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await it.until_in_flight(0)
        assert (tally.sent, tally.open) == (1, 1)


@subjects
async def test_calls_run_at_the_same_time(subject: Open) -> None:
    async with subject(Answer(), held=True) as it, asyncio.timeout(30):
        tasks = [asyncio.create_task(ask(it, False)) for _ in range(5)]
        await it.until_in_flight(5)
        it.release()
        assert {reply.text for reply in await asyncio.gather(*tasks)} == {"a reply of several pieces"}
        assert it.in_flight() == 0


@subjects
async def test_the_name_is_the_configured_one(subject: Open) -> None:
    async with subject(Answer()) as it:
        assert it.chat.name == "model"
        assert it.chat.identity == it.chat.identity
