"""Equal requests are made once; who waits, who pays, who is cancelled."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ModelFailed, ModelFailure
from orchestrator.events import EventLog, ModelRetried, Record
from orchestrator.llm.cache import AnswerCache, Cached
from orchestrator.llm.retries import Retried
from orchestrator.seams import RequestTally
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.values import FinishReason, Message, Reply, Role, Usage


def ask(text: str = "hello") -> tuple[Message, ...]:
    return (Message(Role.USER, text),)


def echoing() -> FakeChatModel:
    return FakeChatModel(lambda messages: f"re: {messages[-1].content}")


class Waiters:
    """Tasks that wait for one shared request, with what each is charged."""

    def __init__(self, chat: Cached, count: int) -> None:
        self.tallies = [RequestTally() for _ in range(count)]
        self.tasks = [asyncio.create_task(chat.chat(ask(), EventLog().root(), tally=tally)) for tally in self.tallies]

    @property
    def paid(self) -> list[int]:
        return [index for index, tally in enumerate(self.tallies) if tally.sent]


async def test_equal_requests_in_flight_are_made_once_and_one_pays() -> None:
    model = echoing()
    model.gate.clear()
    waiters = Waiters(Cached(model, AnswerCache()), 5)
    await model.until(lambda: model.in_flight == 1)
    model.gate.set()
    replies = await asyncio.gather(*waiters.tasks)
    assert len(model.calls) == 1
    assert {reply.text for reply in replies} == {"re: hello"}
    assert [reply.cached for reply in replies] == [False, True, True, True, True]
    assert [reply.cost_usd for reply in replies[1:]] == [0.0] * 4
    assert sum((reply.usage.total_tokens for reply in replies[1:] if reply.usage), 0) == 0
    assert waiters.paid == [0]


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_one_who_leaves_does_not_cancel_the_others(leaver: int) -> None:
    model = echoing()
    model.gate.clear()
    waiters = Waiters(Cached(model, AnswerCache()), 3)
    await model.until(lambda: model.in_flight == 1)
    waiters.tasks[leaver].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters.tasks[leaver]
    model.gate.set()
    rest = [index for index in range(3) if index != leaver]
    assert [(await waiters.tasks[index]).text for index in rest] == ["re: hello"] * 2
    assert waiters.paid == [rest[0]], "exactly one of those who stayed pays"
    assert model.cancelled == 0


async def test_the_last_one_to_leave_cancels_the_request_and_pays_for_it() -> None:
    never = asyncio.Event()

    async def slow_to_stop(messages: Sequence[Message]) -> str:
        try:
            await never.wait()
        finally:
            for _ in range(5):  # as closing a connection takes its turns
                await asyncio.sleep(0)
        return "re: hello"

    model = FakeChatModel(slow_to_stop)
    cache = AnswerCache()
    waiters = Waiters(Cached(model, cache), 3)
    await model.until(lambda: model.in_flight == 1)
    for task in waiters.tasks:
        task.cancel()
    await asyncio.gather(*waiters.tasks, return_exceptions=True)
    assert model.cancelled == 1
    assert model.in_flight == 0, "it has ended before the last one's cancellation goes on"
    assert sum(tally.open for tally in waiters.tallies) == 1
    never.set()
    assert (await Cached(model, cache).chat(ask(), EventLog().root())).text == "re: hello"


@pytest.mark.parametrize("turns", range(6))
async def test_one_who_leaves_in_the_moment_of_the_answer_pays_for_it(turns: int) -> None:
    model = echoing()
    model.gate.clear()
    waiters = Waiters(Cached(model, AnswerCache()), 1)
    await model.until(lambda: model.in_flight == 1)
    model.gate.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiters.tasks[0].cancel()
    await asyncio.gather(*waiters.tasks, return_exceptions=True)
    assert waiters.paid == [0]


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("leavers", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2)])
async def test_a_request_is_billed_once_whoever_leaves_in_the_moment_of_its_answer(
    turns: int, leavers: tuple[int, ...]
) -> None:
    model = echoing()
    model.gate.clear()
    waiters = Waiters(Cached(model, AnswerCache()), 3)
    await model.until(lambda: model.in_flight == 1)
    model.gate.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    for leaver in leavers:
        waiters.tasks[leaver].cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*waiters.tasks, return_exceptions=True)
    assert sum(tally.sent for tally in waiters.tallies) == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_no_complaint_of_the_loop() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    async def fail_when_cancelled(messages: Sequence[Message]) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ModelFailed(ModelFailure.CONNECTION, "fake", "lost while it was given up") from None
        raise AssertionError

    model = FakeChatModel(fail_when_cancelled)
    waiters = Waiters(Cached(model, AnswerCache()), 1)
    await model.until(lambda: model.in_flight == 1)
    waiters.tasks[0].cancel()
    await asyncio.wait(waiters.tasks)
    waiters.tasks.clear()
    await asyncio.sleep(0)  # the loop lets go of it
    gc.collect()  # it complains of what is thrown away unseen
    assert complaints == []


async def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    failure = ModelFailed(ModelFailure.REJECTED, "fake", "no")
    replies: list[Callable[[], str | Exception]] = [lambda: failure, lambda: "fine now"]
    model = FakeChatModel(lambda messages: replies.pop(0)())
    model.gate.clear()
    chat = Cached(model, AnswerCache(10_000))
    waiters = Waiters(chat, 3)
    await model.until(lambda: model.in_flight == 1)
    model.gate.set()
    results = await asyncio.gather(*waiters.tasks, return_exceptions=True)
    assert results == [failure] * 3
    assert (await chat.chat(ask(), EventLog().root())).text == "fine now"


async def test_a_retry_is_told_on_the_span_of_each_who_waits() -> None:
    async def no_nap(seconds: float) -> None:
        return

    outcomes: list[str | Exception] = [ModelFailed(ModelFailure.SERVER, "fake", "500"), "ok"]
    model = FakeChatModel(lambda messages: outcomes.pop(0))
    model.gate.clear()
    chat = Cached(Retried(model, sleep=no_nap), AnswerCache())
    told: list[list[Record]] = [[], []]
    tasks = [asyncio.create_task(chat.chat(ask(), EventLog(records.append).root())) for records in told]
    await model.until(lambda: model.in_flight == 1)
    model.gate.set()
    await asyncio.gather(*tasks)
    assert [[type(record.event) for record in records] for records in told] == [[ModelRetried]] * 2


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((Message(Role.SYSTEM, "hello"),), id="role"),
        pytest.param((Message(Role.USER, "hello "),), id="text"),
        pytest.param((Message(Role.USER, "hel"), Message(Role.USER, "lo")), id="split"),
    ],
)
async def test_different_messages_are_different_requests(other: Sequence[Message]) -> None:
    model = echoing()
    chat = Cached(model, AnswerCache(10_000))
    await asyncio.gather(chat.chat(ask(), EventLog().root()), chat.chat(other, EventLog().root()))
    assert len(model.calls) == 2


async def test_two_models_do_not_share_and_neither_do_two_output_limits() -> None:
    one, two = FakeChatModel(lambda messages: "one", "one"), FakeChatModel(lambda messages: "two", "two")
    cache = AnswerCache(10_000)
    assert (await Cached(one, cache).chat(ask(), EventLog().root())).text == "one"
    assert (await Cached(two, cache).chat(ask(), EventLog().root())).text == "two"
    await Cached(one, cache).chat(ask(), EventLog().root(), max_output_tokens=5)
    assert len(one.calls) == 2


async def test_a_kept_answer_is_free_and_a_stream_gets_it_in_one_piece() -> None:
    model = echoing()
    chat = Cached(model, AnswerCache(10_000))
    await chat.chat(ask(), EventLog().root())
    pieces: list[str] = []
    reply = await chat.chat(ask(), EventLog().root(), pieces.append)
    assert pieces == ["re: hello"]
    assert reply == Reply("re: hello", FinishReason.STOP, Usage(), "fake", 0.0, cached=True)
    assert len(model.calls) == 1


async def test_nothing_is_kept_without_room_for_it() -> None:
    model = echoing()
    chat = Cached(model, AnswerCache(0))
    await chat.chat(ask(), EventLog().root())
    await chat.chat(ask(), EventLog().root())
    assert len(model.calls) == 2


@pytest.mark.parametrize("finish", [reason for reason in FinishReason if reason is not FinishReason.STOP])
async def test_an_answer_that_is_not_whole_is_asked_for_again(finish: FinishReason) -> None:
    model = FakeChatModel(lambda messages: Reply("part", finish, None, "fake"))
    chat = Cached(model, AnswerCache(10_000))
    await chat.chat(ask(), EventLog().root())
    await chat.chat(ask(), EventLog().root())
    assert len(model.calls) == 2


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 900)), max_size=60))
def test_what_is_kept_stays_within_its_bounds(answers: list[tuple[int, int]]) -> None:
    cache = AnswerCache(max_bytes=4000, max_entries=5)
    for number, length in answers:
        cache.keep(bytes([number]), Reply("x" * length, FinishReason.STOP, None, "fake"))
        assert cache.size_bytes <= 4000
        assert len(cache) <= 5
        assert cache.find(bytes([number])) is not None, "the newest stays"
