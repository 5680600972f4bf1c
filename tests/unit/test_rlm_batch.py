"""The one question path: order, duplicates, concurrency, and failures that stay in their slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from orchestrator.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InvalidInput,
    LossCause,
    ModelFailed,
    ModelFailure,
    RLMError,
    SandboxLost,
    SandboxUnavailable,
)
from orchestrator.events import (
    BatchEnded,
    BatchStarted,
    EventLog,
    Outcome,
    QueryEnded,
    QueryStarted,
    Record,
    Span,
    SpanKind,
    SubCallChoice,
)
from orchestrator.rlm.batch import CONTEXT_HOLDS_THE_TASK, MAX_ANSWER_CHARS, MAX_PROMPT_CHARS, Questions
from orchestrator.rlm.leaf import Leaf
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.values import (
    Answered,
    Attachment,
    Batch,
    Completion,
    ContextKind,
    Ending,
    Failed,
    FailureReason,
    FinishReason,
    Prompt,
    Question,
    Reply,
)
from tests.unit.rlm_world import FolderContexts


class Sub:
    """A sub-model that a function stands in for."""

    def __init__(self, answer: Callable[[Prompt], Coroutine[None, None, str]], recursive: bool = False) -> None:
        self._answer = answer
        self.recursive = recursive
        self.prompts: list[Prompt] = []
        self.texts: list[str] = []

    async def completion(self, prompt: Prompt, span: Span) -> Completion:
        self.prompts.append(prompt)
        if prompt.context is not None:
            self.texts.append(prompt.context.path.read_text())
        return Completion(await self._answer(prompt), Ending.PLAIN)


async def upper(prompt: Prompt) -> str:
    return prompt.query.upper()


class Asking:
    def __init__(self, folder: Path, sub: Sub, plain: Sub | None = None, plain_chars: int = 0) -> None:
        self.contexts = FolderContexts(folder)
        self.questions = Questions(sub, self.contexts, plain, plain_chars)
        self.records: list[Record] = []
        self.cell = EventLog(self.records.append).root().child(SpanKind.CELL)

    async def ask(self, *prompts: str, max_concurrent: int = 10) -> tuple[Answered | Failed, ...]:
        batch = Batch(tuple(Question(prompt) for prompt in prompts), max_concurrent)
        return await self.questions.answer(batch, self.cell)

    def events(self) -> list[object]:
        return [record.event for record in self.records]


async def test_answers_come_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    gates["b"].set()

    async def slow_first(prompt: Prompt) -> str:
        await gates[prompt.query].wait()
        gates["a"].set()
        return prompt.query.upper()

    assert await Asking(tmp_path, Sub(slow_first)).ask("a", "b") == (Answered("A"), Answered("B"))


async def test_duplicates_are_asked_once_and_answered_everywhere(tmp_path: Path) -> None:
    sub = Sub(upper)
    asking = Asking(tmp_path, sub)
    assert await asking.ask("a", "b", "a", "a") == tuple(map(Answered, ("A", "B", "A", "A")))
    assert [prompt.query for prompt in sub.prompts] == ["a", "b"]
    assert asking.events()[0] == BatchStarted(size=4, distinct=2, max_concurrent=10)
    assert [event.index for event in asking.events() if isinstance(event, QueryStarted)] == [0, 1]


async def test_a_failed_duplicate_fails_everywhere_and_is_counted_by_slot(tmp_path: Path) -> None:
    async def fail(prompt: Prompt) -> str:
        raise ModelFailed(ModelFailure.SERVER, "m", "500")

    asking = Asking(tmp_path, Sub(fail))
    slots = await asking.ask("a", "a")
    assert all(isinstance(slot, Failed) for slot in slots)
    assert asking.events()[-1] == BatchEnded(Outcome.OK, failed=2)


@pytest.mark.parametrize(("calls", "width", "rounds"), [(7, 3, 3), (4, 10, 1), (3, 1, 3)])
async def test_n_calls_take_ceil_of_n_over_max_concurrent_rounds(
    tmp_path: Path, calls: int, width: int, rounds: int
) -> None:
    arrived: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()

    async def held(prompt: Prompt) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        arrived.put_nowait(future)
        return await future

    prompts = [str(number) for number in range(calls)]
    asked = asyncio.create_task(Asking(tmp_path, Sub(held)).ask(*prompts, max_concurrent=width))
    for done in range(0, calls, width):
        in_flight = [await arrived.get() for _ in prompts[done : done + width]]
        rounds -= 1
        assert arrived.empty()  # no call starts before one of these has ended
        for future in in_flight:
            future.set_result("fine")
    assert await asked == (Answered("fine"),) * calls
    assert rounds == 0


FAILURES: list[tuple[Exception, FailureReason]] = [
    *[
        (ModelFailed(kind, "m", "sk-secret"), FailureReason.MODEL)
        for kind in ModelFailure
        if kind not in (ModelFailure.REFUSED, ModelFailure.TOO_LONG, ModelFailure.QUOTA)
    ],
    (ModelFailed(ModelFailure.QUOTA, "m", "sk-secret"), FailureReason.BUDGET),
    (ModelFailed(ModelFailure.REFUSED, "m", "sk-secret"), FailureReason.REFUSED),
    (ModelFailed(ModelFailure.TOO_LONG, "m", "sk-secret"), FailureReason.TOO_LONG),
    (BudgetExceeded("max_calls", 3, 3, 1, "sk-secret"), FailureReason.BUDGET),
    (DeadlineExceeded("sk-secret", 3), FailureReason.DEADLINE),
    (SandboxUnavailable("sk-secret"), FailureReason.SANDBOX),
    (SandboxLost("sk-secret", LossCause.EXITED), FailureReason.SANDBOX),
    (InvalidInput("sk-secret", "is wrong"), FailureReason.INVALID),
    (RLMError("sk-secret"), FailureReason.MODEL),
    (OSError("sk-secret"), FailureReason.MODEL),
]


@pytest.mark.parametrize(
    ("failure", "reason"), FAILURES, ids=lambda value: getattr(value, "kind", type(value).__name__)
)
async def test_one_failure_never_fails_the_batch_and_tells_no_detail(
    tmp_path: Path, failure: Exception, reason: FailureReason
) -> None:
    async def one_fails(prompt: Prompt) -> str:
        if prompt.query == "bad":
            raise failure
        return "fine"

    asking = Asking(tmp_path, Sub(one_fails))
    before, bad, after = await asking.ask("x", "bad", "y")
    assert (before, after) == (Answered("fine"), Answered("fine"))
    assert isinstance(bad, Failed)
    assert bad.reason is reason
    assert bad.message
    assert "sk-secret" not in bad.message
    ended = [event for event in asking.events() if isinstance(event, QueryEnded) and event.failure]
    assert [(event.outcome, event.failure) for event in ended] == [(Outcome.FAILED, reason)]
    assert "sk-secret" in ended[0].error  # for people


@pytest.mark.parametrize("width", [0, -1])
async def test_max_concurrent_below_one_asks_nothing(tmp_path: Path, width: int) -> None:
    sub = Sub(upper)
    slots = await Asking(tmp_path, sub).ask("a", "b", max_concurrent=width)
    assert [isinstance(slot, Failed) and slot.reason for slot in slots] == [FailureReason.INVALID] * 2
    assert not sub.prompts


async def test_an_empty_batch_is_empty(tmp_path: Path) -> None:
    asking = Asking(tmp_path, Sub(upper))
    assert await asking.ask() == ()
    assert not asking.records


async def test_stopping_cancels_what_is_in_flight_and_ends_every_span(tmp_path: Path) -> None:
    model = FakeChatModel(lambda messages: "x")
    model.gate.clear()
    asking = Asking(tmp_path, Sub(upper))
    questions = Questions(Leaf(model, asking.contexts), asking.contexts)
    batch = Batch((Question("a"), Question("b"), Question("c")), 2)
    task = asyncio.create_task(questions.answer(batch, asking.cell))
    await model.until(lambda: model.in_flight == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.cancelled == 2
    ended = [event for event in asking.events() if isinstance(event, QueryEnded)]
    assert [event.outcome for event in ended] == [Outcome.CANCELLED] * 2
    assert asking.events()[-1] == BatchEnded(Outcome.CANCELLED, failed=0)


async def test_progress_can_be_read_off_the_events(tmp_path: Path) -> None:
    asking = Asking(tmp_path, Sub(upper))
    await asking.ask("a", "b", "c")
    kinds = [type(event).__name__ for event in asking.events()]
    assert kinds[0] == "BatchStarted"
    assert kinds[-1] == "BatchEnded"
    assert kinds.count("QueryStarted") == kinds.count("QueryEnded") == 3


async def test_a_query_belongs_to_the_depth_below_its_cell(tmp_path: Path) -> None:
    asking = Asking(tmp_path, Sub(upper))
    await asking.ask("a")
    assert {record.depth for record in asking.records if record.kind is SpanKind.QUERY} == {1}
    assert {record.depth for record in asking.records if record.kind is SpanKind.BATCH} == {0}


async def test_a_recursive_sub_call_receives_its_prompt_as_context(tmp_path: Path) -> None:
    sub = Sub(upper, recursive=True)
    asking = Asking(tmp_path, sub)
    await asking.ask("short prompt", "long prompt " * 1_000)
    assert [prompt.query for prompt in sub.prompts] == ["short prompt", CONTEXT_HOLDS_THE_TASK]
    assert sub.texts == ["short prompt", "long prompt " * 1_000]
    assert not asking.contexts.held


async def test_a_plain_sub_call_receives_its_prompt_as_it_is(tmp_path: Path) -> None:
    sub = Sub(upper)
    await Asking(tmp_path, sub).ask("long prompt " * 1_000)
    assert sub.prompts == [Prompt("long prompt " * 1_000)]


@pytest.mark.parametrize("recursive", [True, False])
async def test_an_attachment_is_the_context_and_the_prompt_its_query(tmp_path: Path, recursive: bool) -> None:
    sub = Sub(upper, recursive)
    asking = Asking(tmp_path, sub)
    question = Question("Sum up.", Attachment(ContextKind.TEXT, b"the data"))
    assert await asking.questions.answer(Batch((question,), 1), asking.cell) == (Answered("SUM UP."),)
    assert sub.texts == ["the data"]
    assert not asking.contexts.held


async def test_an_attachment_is_dropped_after_a_failure_too(tmp_path: Path) -> None:
    async def fail(prompt: Prompt) -> str:
        raise ModelFailed(ModelFailure.SERVER, "m", "500")

    asking = Asking(tmp_path, Sub(fail, recursive=True))
    await asking.ask("a", "b")
    assert not asking.contexts.held


def spent_out(limit: str = "max_calls") -> BudgetExceeded:
    return BudgetExceeded(limit, 3, 3, 1)


async def test_a_batch_stops_at_the_first_refusal_that_holds_for_all(tmp_path: Path) -> None:
    """10,000 questions that nothing is left for: 40,000 events, and the loop was blocked for seconds."""

    async def refuse(prompt: Prompt) -> str:
        raise spent_out()

    asking = Asking(tmp_path, Sub(refuse))
    slots = await asking.ask(*map(str, range(10_000)))
    assert {slot.reason for slot in slots if isinstance(slot, Failed)} == {FailureReason.BUDGET}
    assert len(slots) == 10_000
    ended = asking.events()[-1]
    assert isinstance(ended, BatchEnded)
    assert ended.failed == 10_000
    asked = sum(isinstance(event, QueryStarted) for event in asking.events())
    assert asked + ended.unasked == 10_000
    assert asked < 20


@pytest.mark.parametrize("width", [1, 4, 16, 64])
async def test_nothing_is_asked_after_the_first_refusal_that_holds_for_all(tmp_path: Path, width: int) -> None:
    async def answer(prompt: Prompt) -> str:
        if len(sub.prompts) > 10:
            raise spent_out()
        return "fine"

    sub = Sub(answer)
    slots = await Asking(tmp_path, sub).ask(*map(str, range(500)), max_concurrent=width)
    assert len(sub.prompts) == 11
    assert sum(isinstance(slot, Answered) for slot in slots) == 10


@pytest.mark.parametrize(
    "refusal", [BudgetExceeded("max_tokens", 100, 60, 70), spent_out("max_sandboxes")], ids=["too-large", "sandboxes"]
)
async def test_a_refusal_that_may_not_hold_for_others_does_not_stop_the_batch(
    tmp_path: Path, refusal: BudgetExceeded
) -> None:
    async def refuse_one(prompt: Prompt) -> str:
        if prompt.query == "0":
            raise refusal
        return "fine"

    slots = await Asking(tmp_path, Sub(refuse_one)).ask(*map(str, range(100)), max_concurrent=1)
    assert slots[1:] == (Answered("fine"),) * 99


async def test_a_used_up_budget_refuses_before_a_question_is_written_to_disk(tmp_path: Path) -> None:
    sub = Sub(upper, recursive=True)
    asking = Asking(tmp_path, sub)
    questions = Questions(sub, asking.contexts, used_up=spent_out)
    asked = tuple(Question(str(n), Attachment(ContextKind.TEXT, b"x" * 1_000)) for n in range(3))
    slots = await questions.answer(Batch(asked, 1), asking.cell)
    assert [isinstance(slot, Failed) and slot.reason for slot in slots] == [FailureReason.BUDGET] * 3
    assert not sub.prompts
    assert asking.contexts.put_values == []
    assert asking.events()[-1] == BatchEnded(Outcome.OK, failed=3, unasked=2)


async def test_others_have_their_turn_on_the_loop_while_a_large_batch_is_asked(tmp_path: Path) -> None:
    """A sub-call that never waits (an answer from a cache) would hold the loop for all of a batch."""
    asking = Asking(tmp_path, Sub(upper))
    running = asyncio.create_task(asking.ask(*map(str, range(2_000)), max_concurrent=10_000))
    most = seen = 0
    while not running.done():
        await asyncio.sleep(0)
        begun = sum(isinstance(event, QueryStarted) for event in asking.events()[seen:])
        most, seen = max(most, begun), len(asking.records)
    assert 0 < most <= 64
    assert len(await running) == 2_000


async def test_a_long_prompt_is_in_the_record_by_its_head_its_tail_and_its_length(tmp_path: Path) -> None:
    sub = Sub(upper)
    asking = Asking(tmp_path, sub)
    prompt = "head" + "x" * (1 << 20) + "tail"
    await asking.ask(prompt)
    [started] = [event for event in asking.events() if isinstance(event, QueryStarted)]
    assert len(started.prompt) < 11_000
    assert started.prompt.startswith("head")
    assert started.prompt.endswith("tail")
    assert "of 1,048,584 characters left out" in started.prompt
    assert [asked.query for asked in sub.prompts] == [prompt]


@pytest.mark.parametrize(("recursive", "data"), [(False, None), (True, b"data"), (False, b"data")])
async def test_a_prompt_that_no_model_could_read_is_too_long_before_it_is_asked(
    tmp_path: Path, recursive: bool, data: bytes | None
) -> None:
    sub = Sub(upper, recursive)
    asking = Asking(tmp_path, sub)
    attachment = None if data is None else Attachment(ContextKind.TEXT, data)
    question = Question("x" * (MAX_PROMPT_CHARS + 1), attachment)
    [slot] = await asking.questions.answer(Batch((question,), 1), asking.cell)
    assert isinstance(slot, Failed)
    assert slot.reason is FailureReason.TOO_LONG
    assert not sub.prompts


async def test_an_answer_beyond_all_sense_is_cut_with_a_notice(tmp_path: Path) -> None:
    async def endless(prompt: Prompt) -> str:
        return "x" * (MAX_ANSWER_CHARS + 1)

    [slot] = await Asking(tmp_path, Sub(endless)).ask("a")
    assert isinstance(slot, Answered)
    assert slot.text.endswith("x\n[... cut: the answer has 8,388,609 characters ...]")


# --- the leaf ---------------------------------------------------------------------------------------------------


def leaf_answering(reply: Reply, folder: Path) -> Asking:
    asking = Asking(folder, Sub(upper))
    asking.questions = Questions(Leaf(FakeChatModel(lambda _: reply), asking.contexts), asking.contexts)
    return asking


async def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    asking = leaf_answering(Reply("", FinishReason.STOP, None, "m"), tmp_path)
    assert await asking.ask("a") == (Answered(""),)


@pytest.mark.parametrize("finish", [FinishReason.REFUSAL, FinishReason.CONTENT_FILTER])
async def test_a_refused_answer_is_a_failed_slot(tmp_path: Path, finish: FinishReason) -> None:
    (slot,) = await leaf_answering(Reply("I can't", finish, None, "m"), tmp_path).ask("a")
    assert isinstance(slot, Failed)
    assert slot.reason is FailureReason.REFUSED


async def test_an_answer_cut_by_length_is_its_beginning_and_noticed(tmp_path: Path) -> None:
    asking = leaf_answering(Reply("The begin", FinishReason.LENGTH, None, "m"), tmp_path)
    assert await asking.ask("a") == (Answered("The begin"),)
    assert "NoticeGiven" in [type(event).__name__ for event in asking.events()]


async def test_a_leaf_sends_prompt_and_context_as_one_message(tmp_path: Path) -> None:
    contexts = FolderContexts(tmp_path)
    model = FakeChatModel(lambda messages: messages[0].content)
    context = await contexts.put("the data")
    completion = await Leaf(model, contexts).completion(Prompt("Sum up.", context), EventLog().root())
    assert completion == Completion("Sum up.\n\n<context>\nthe data\n</context>", Ending.PLAIN)


async def test_a_context_too_large_for_a_leaf_is_a_failure_that_says_so(tmp_path: Path) -> None:
    contexts = FolderContexts(tmp_path)
    context = await contexts.put("x" * 11)
    leaf = Leaf(FakeChatModel(lambda _: "never"), contexts, max_context_bytes=10)
    with pytest.raises(ModelFailed, match="11 bytes does not fit into a plain call, which takes 10") as caught:
        await leaf.completion(Prompt("q", context), EventLog().root())
    assert caught.value.kind is ModelFailure.TOO_LONG


async def test_a_batch_that_is_to_stop_at_a_failure_cancels_what_is_left(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def one_fails(prompt: Prompt) -> str:
        if prompt.query == "bad":
            await started.wait()
            raise ModelFailed(ModelFailure.SERVER, "m", "500")
        if prompt.query in ("slow", "slow too"):
            started.set()
            await asyncio.Event().wait()
        return "fine"

    sub = Sub(one_fails)
    asking = Asking(tmp_path, sub)
    batch = Batch(tuple(map(Question, ("good", "slow", "bad", "slow too", "later"))), 3, stop_at_failure=True)
    slots = await asking.questions.answer(batch, asking.cell)
    assert slots[0] == Answered("fine")
    assert [slot.reason for slot in slots[1:] if isinstance(slot, Failed)] == [
        FailureReason.CANCELLED,
        FailureReason.MODEL,
        FailureReason.CANCELLED,
        FailureReason.CANCELLED,
    ]
    assert "later" not in [prompt.query for prompt in sub.prompts]
    outcomes = [event.outcome for event in asking.events() if isinstance(event, QueryEnded)]
    assert outcomes.count(Outcome.FAILED) == 1
    assert Outcome.CANCELLED in outcomes
    assert isinstance(asking.events()[-1], BatchEnded)


async def test_who_has_an_answer_asks_the_next_in_the_same_turn_of_the_loop(tmp_path: Path) -> None:
    """A place that is empty for a turn is empty for as long as all others in flight keep the loop busy."""
    turn = 0
    asked_at, answered_at = {}, {}
    answers = {name: asyncio.get_running_loop().create_future() for name in ("a", "b", "c", "d")}

    async def answer(prompt: Prompt) -> str:
        asked_at[prompt.query] = turn
        await answers[prompt.query]
        answered_at[prompt.query] = turn
        return "fine"

    asked = asyncio.create_task(Asking(tmp_path, Sub(answer)).ask(*answers, max_concurrent=2))
    for future in answers.values():
        for _ in range(20):
            turn += 1
            await asyncio.sleep(0)
        future.set_result(None)
    assert await asked == (Answered("fine"),) * 4
    assert asked_at["c"] == answered_at["a"]
    assert asked_at["d"] == answered_at["b"]


async def test_without_that_wish_a_failure_stops_nothing(tmp_path: Path) -> None:
    async def one_fails(prompt: Prompt) -> str:
        if prompt.query == "bad":
            raise ModelFailed(ModelFailure.SERVER, "m", "500")
        return "fine"

    slots = await Asking(tmp_path, Sub(one_fails)).ask("bad", "a", "b", max_concurrent=1)
    assert [isinstance(slot, Failed) for slot in slots] == [True, False, False]


LONG = "x" * 101


@pytest.mark.parametrize(
    ("recursive", "plain_chars", "question", "goes_to", "choice"),
    [
        (None, 0, Question("short"), "sub", SubCallChoice.DEPTH),
        (None, 100, Question("short"), "plain", SubCallChoice.SIZE),
        (None, 100, Question(LONG), "sub", SubCallChoice.SIZE),
        (None, 100, Question("short", Attachment(ContextKind.TEXT, b"x" * 95)), "plain", SubCallChoice.SIZE),
        (None, 100, Question("short", Attachment(ContextKind.TEXT, b"x" * 96)), "sub", SubCallChoice.SIZE),
        (None, 100, Question("short", Attachment(ContextKind.BYTES, b"x")), "sub", SubCallChoice.SIZE),
        (True, 100, Question("short"), "sub", SubCallChoice.CODE),
        (False, 0, Question(LONG), "plain", SubCallChoice.CODE),
    ],
)
async def test_a_sub_call_is_plain_or_recursive_by_its_size_and_as_the_code_wishes(
    tmp_path: Path,
    recursive: bool | None,
    plain_chars: int,
    question: Question,
    goes_to: str,
    choice: SubCallChoice,
) -> None:
    subs = {"sub": Sub(upper, recursive=True), "plain": Sub(upper)}
    asking = Asking(tmp_path, subs["sub"], subs["plain"], plain_chars)
    await asking.questions.answer(Batch((question,), 1, recursive=recursive), asking.cell)
    assert [name for name, sub in subs.items() if sub.prompts] == [goes_to]
    (started,) = [event for event in asking.events() if isinstance(event, QueryStarted)]
    assert (started.recursive, started.choice) == (goes_to == "sub", choice)
    if goes_to == "plain" and question.attachment is None:
        assert subs["plain"].prompts == [Prompt(question.prompt)]  # no context is written for it


async def test_no_wish_makes_a_recursion_deeper(tmp_path: Path) -> None:
    leaf = Sub(upper)
    asking = Asking(tmp_path, leaf, Sub(upper), 100)
    await asking.questions.answer(Batch((Question("q"),), 1, recursive=True), asking.cell)
    assert [prompt.query for prompt in leaf.prompts] == ["q"]
    (started,) = [event for event in asking.events() if isinstance(event, QueryStarted)]
    assert (started.recursive, started.choice) == (False, SubCallChoice.DEPTH)
