"""The loop over fakes: what it does, what it tells, and what is left behind: nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.errors import (
    BudgetExceeded,
    InvalidInput,
    LossCause,
    ModelFailed,
    ModelFailure,
    SandboxLost,
    SandboxUnavailable,
)
from orchestrator.events import (
    BatchEnded,
    CellEnded,
    CellPrinted,
    CellStarted,
    IterationStarted,
    ModelCallEnded,
    ModelTextStreamed,
    NoticeGiven,
    Outcome,
    QueryEnded,
    QueryStarted,
    RlmEnded,
    RlmStarted,
    SandboxEnded,
    SandboxStarted,
    SpanKind,
)
from orchestrator.rlm import RLM, Leaf
from orchestrator.rlm.replay import replay
from orchestrator.seams import Answer, OutputSink, Sandbox
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.testing.fake_sandbox import FakeSandboxes, Loss
from orchestrator.values import (
    Batch,
    CellResult,
    CellStatus,
    Completion,
    Context,
    Deadline,
    Ending,
    Failed,
    FailureReason,
    FinalAnswer,
    FinishReason,
    Limits,
    Message,
    Prompt,
    Question,
    Reply,
    Slot,
)
from tests.unit.rlm_world import FolderContexts, World, code, depth_of, is_leaf, replies

MakeWorld = Callable[..., World]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeWorld]:
    """Makes worlds; after the test nothing of any is left, and each decides alike when its record is replayed."""
    worlds: list[World] = []

    def new(policy: Callable[..., object], **options: object) -> World:
        folder = tmp_path / str(len(worlds))
        folder.mkdir()
        worlds.append(World(folder, policy, **options))  # type: ignore[arg-type]
        return worlds[-1]

    yield new
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for world in worlds:
        world.assert_nothing_is_left()
        replay(world.records)


async def test_a_run_of_several_cells_to_its_answer(make: MakeWorld) -> None:
    world = make(replies(code("n = len(context)"), "Next.\n" + code("print(n)") + "\n" + code("FINAL(n)")))
    assert await world.ask("How long?", "abcd") == Completion("4", Ending.FINAL)
    assert [event.code for event in world.all_of(CellStarted)] == ["n = len(context)", "print(n)", "FINAL(n)"]
    assert [(event.number, event.of) for event in world.all_of(IterationStarted)] == [(1, 20), (2, 20)]
    assert world.one(RlmEnded) == RlmEnded(Outcome.OK, "4", Ending.FINAL)


@pytest.mark.parametrize("value", ['""', "0", "None", "[]"])
async def test_a_falsy_answer_is_an_answer(make: MakeWorld, value: str) -> None:
    world = make(replies(code(f"FINAL({value})")))
    assert (await world.ask()).text == value.strip('"')


async def test_the_answer_dict_ends_the_run_when_it_is_ready(make: MakeWorld) -> None:
    world = make(replies(code("answer = {'content': 'x', 'ready': False}"), code("answer['ready'] = True")))
    assert (await world.ask()).text == "x"


async def test_a_failed_cell_is_data_and_keeps_what_ran(make: MakeWorld) -> None:
    world = make(replies(code("kept = 7", "1 / 0"), code("FINAL(kept)")))
    assert (await world.ask()).text == "7"
    failed, _ = world.all_of(CellEnded)
    assert failed.outcome is Outcome.OK
    assert failed.result is not None
    assert failed.result.status is CellStatus.ERROR
    assert "ZeroDivisionError" in world.chat.calls[1].messages[-1].content


async def test_a_final_var_of_a_missing_name_does_not_end_the_run(make: MakeWorld) -> None:
    world = make(replies(code("total = 42"), "FINAL_VAR(totl)", "FINAL_VAR(total)"))
    assert (await world.ask()).text == "42"
    assert "total (int" in world.chat.calls[2].messages[-1].content


async def test_out_of_iterations_the_last_question_gives_a_best_effort(make: MakeWorld) -> None:
    world = make(replies("Hm.", "Hm.", "FINAL(about 42)"), max_iterations=2)
    assert await world.ask() == Completion("about 42", Ending.BEST_EFFORT)
    assert [event.last_resort for event in world.all_of(IterationStarted)] == [False, False, True]


async def test_no_answer_at_all_is_a_failure(make: MakeWorld) -> None:
    world = make(replies("Hm.", ""), max_iterations=1)
    with pytest.raises(ModelFailed, match="no answer within 1 iterations") as caught:
        await world.ask()
    assert caught.value.kind is ModelFailure.MALFORMED
    assert world.one(RlmEnded).outcome is Outcome.FAILED


async def test_the_context_is_never_sent_and_never_sent_again(make: MakeWorld) -> None:
    context = "x" * 500_000
    world = make(replies(code("1"), code("2"), code("FINAL(3)")))
    await world.ask("How?", context)
    assert max(len(m.content) for call in world.chat.calls for m in call.messages) < 20_000


async def test_a_paid_call_is_made_once(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str:
        return "fine" if is_leaf(messages) else code("llm_query('one?')", "FINAL(llm_query('two?'))")

    world = make(policy)
    assert (await world.ask()).text == "fine"
    assert [call.messages[0].content for call in world.chat.calls if is_leaf(call.messages)] == ["one?", "two?"]


# --- depth ------------------------------------------------------------------------------------------------------


def recursing(messages: Sequence[Message]) -> str:
    """Each RLM asks the level below and adds its own depth; a leaf says what it was asked."""
    if is_leaf(messages):
        return f"leaf({messages[0].content})"
    depth = depth_of(messages)
    return code(f"FINAL('{depth}:' + llm_query('from {depth}'))")


@pytest.mark.parametrize(
    ("max_depth", "answer"),
    [(1, "0:leaf(from 0)"), (2, "0:1:leaf(from 1)"), (3, "0:1:2:leaf(from 2)")],
)
async def test_depths_below_max_depth_have_a_repl_and_the_last_is_plain(
    make: MakeWorld, max_depth: int, answer: str
) -> None:
    world = make(recursing, max_depth=max_depth)
    assert (await world.ask()).text == answer
    assert [event.depth for event in world.all_of(RlmStarted)] == list(range(max_depth))
    assert [event.recursive for event in world.all_of(QueryStarted)] == [True] * (max_depth - 1) + [False]
    assert world.sandboxes.opened == max_depth
    assert world.sandboxes.heights == list(reversed(range(max_depth)))


async def test_iterations_by_depth_come_from_the_roots_number(make: MakeWorld) -> None:
    world = make(recursing, max_depth=4)
    await world.ask()
    assert [event.max_iterations for event in world.all_of(RlmStarted)] == [20, 10, 6, 5]


async def test_a_childs_prompt_is_its_context(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str:
        return code("FINAL(llm_query('abc' * 1000))") if depth_of(messages) == 0 else code("FINAL(len(context))")

    world = make(policy, max_depth=2)
    assert (await world.ask()).text == "3000"


async def test_an_attachment_is_the_childs_context(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str:
        if depth_of(messages) == 0:
            return code("FINAL(llm_query('How many?', context=[1, 2, 3]))")
        return code("FINAL(len(context))")

    world = make(policy, max_depth=2)
    assert (await world.ask()).text == "3"
    assert world.all_of(RlmStarted)[1].query == "How many?"


async def test_parallel_sub_rlms_keep_their_output_and_variables_apart(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str:
        if depth_of(messages) == 0:
            return code("FINAL(','.join(llm_batch(['a', 'b', 'c', 'd'])))")
        return code("print(context)", "mine = context") if len(messages) == 2 else "FINAL_VAR(mine)"

    world = make(policy, max_depth=2)
    assert (await world.ask()).text == "a,b,c,d"
    cells = [event.result for event in world.all_of(CellEnded) if event.result is not None]
    assert sorted(result.stdout.text for result in cells if result.stdout.text) == ["a\n", "b\n", "c\n", "d\n"]


async def test_a_childs_failure_is_a_slot_and_not_the_parents_end(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str | Exception:
        if depth_of(messages) == 0:
            return code("r = llm_query('go')", "FINAL(f'{r.failed} {r.reason} {r}')")
        return ModelFailed(ModelFailure.SERVER, "m", "secret host name")

    world = make(policy, max_depth=2)
    answer = (await world.ask()).text
    assert answer.startswith("True model Error: ")
    assert "secret" not in answer
    assert world.outcomes(SpanKind.RLM) == [Outcome.FAILED, Outcome.OK]


async def test_a_childs_lost_sandbox_is_a_slot(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str:
        if depth_of(messages) == 0:
            return code("FINAL(llm_query('go').reason)")
        return code("1")

    world = make(policy, max_depth=2, sandboxes=FakeSandboxes(losses=[Loss(sandbox=2)]))
    assert (await world.ask()).text == "sandbox"


async def test_what_a_child_spends_is_in_the_trees_total(make: MakeWorld) -> None:
    world = make(recursing, max_depth=3)
    await world.ask()
    assert world.budget.spent.calls == len(world.chat.calls) == 4
    assert {depth: spent.calls for depth, spent in world.budget.by_depth.items()} == {0: 1, 1: 1, 2: 1, 3: 1}


async def test_one_cell_cannot_spend_more_than_the_trees_budget(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str:
        if is_leaf(messages):
            return "fine"
        return code("rs = [llm_query(str(n)) for n in range(10)]", "FINAL([getattr(r, 'reason', 'ok') for r in rs])")

    world = make(policy, limits=Limits(max_calls=4))
    assert (await world.ask()).text.count("budget") == 7
    assert len(world.chat.calls) == 4


async def test_an_exceeded_budget_ends_the_root(make: MakeWorld) -> None:
    world = make(replies("Hm.", "Hm."), limits=Limits(max_calls=1))
    with pytest.raises(BudgetExceeded):
        await world.ask()
    assert world.one(RlmEnded).outcome is Outcome.FAILED


# --- faults -----------------------------------------------------------------------------------------------------


async def test_a_lost_sandbox_fails_the_rlm_and_is_never_shown_as_output(make: MakeWorld) -> None:
    world = make(replies(code("x = 1"), code("x")), sandboxes=FakeSandboxes(losses=[Loss(2, LossCause.OUT_OF_MEMORY)]))
    with pytest.raises(SandboxLost) as caught:
        await world.ask()
    assert caught.value.cause is LossCause.OUT_OF_MEMORY
    assert len(world.chat.calls) == 2  # the model is not asked about it
    lost = world.all_of(CellEnded)[-1]
    assert (lost.outcome, lost.result) == (Outcome.FAILED, None)
    assert world.one(SandboxEnded).outcome is Outcome.FAILED
    assert "lost" in world.one(RlmEnded).error


async def test_a_sandbox_that_cannot_be_had_ends_the_run_while_the_model_still_thinks(make: MakeWorld) -> None:
    world = make(replies("never"), sandboxes=FakeSandboxes(refuse=SandboxUnavailable("no engine")))
    world.chat.gate.clear()  # the model would never answer
    with pytest.raises(SandboxUnavailable, match="no engine"):
        await world.ask()
    assert not world.all_of(SandboxStarted)


async def test_a_failed_model_call_ends_the_run(make: MakeWorld) -> None:
    world = make(replies(ModelFailed(ModelFailure.AUTHENTICATION, "m", "no key")))
    with pytest.raises(ModelFailed):
        await world.ask()
    assert world.one(SandboxEnded).outcome is Outcome.OK


async def test_a_conversation_too_long_for_the_model_is_asked_again_shorter(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str | Exception:
        if sum(len(message.content) for message in messages) > 12_000:
            return ModelFailed(ModelFailure.TOO_LONG, "m", "8192 tokens")
        return "FINAL(fits)" if len(messages) > 4 else code("print('x' * 9_000)")

    world = make(policy)
    assert (await world.ask()).text == "fits"
    assert [event.outcome for event in world.all_of(ModelCallEnded)].count(Outcome.FAILED) == 1
    assert "too long for the model" in world.one(NoticeGiven).text


async def test_a_query_too_long_for_the_model_is_not_asked_over_and_over(make: MakeWorld) -> None:
    world = make(lambda _: ModelFailed(ModelFailure.TOO_LONG, "m", "8192 tokens"))
    with pytest.raises(ModelFailed):
        await world.ask("x" * 100_000)
    assert len(world.chat.calls) == 1


async def test_a_null_reply_uses_an_iteration(make: MakeWorld) -> None:
    world = make(replies("", "FINAL(x)"))
    assert (await world.ask()).text == "x"
    assert len(world.all_of(IterationStarted)) == 2


async def test_half_a_block_of_a_cut_reply_does_not_run(make: MakeWorld) -> None:
    cut = Reply("```repl\nFINAL(1)  # or ra", FinishReason.LENGTH, None, "m")
    world = make(replies_of(cut, Reply("FINAL(2)", FinishReason.STOP, None, "m")))
    assert (await world.ask()).text == "2"
    assert not world.all_of(CellStarted)


def replies_of(*answers: Reply) -> Callable[[Sequence[Message]], Reply]:
    left = iter(answers)
    return lambda _: next(left)


# --- stopping ---------------------------------------------------------------------------------------------------


async def stopped(world: World, moment: Callable[[], bool]) -> None:
    task = asyncio.create_task(world.ask())
    await world.chat.until(moment)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stopping_while_the_model_thinks(make: MakeWorld) -> None:
    world = make(replies("never"))
    world.chat.gate.clear()
    await stopped(world, lambda: world.chat.in_flight == 1)
    assert world.chat.cancelled == 1
    assert world.outcomes(SpanKind.RLM) == world.outcomes(SpanKind.ITERATION) == [Outcome.CANCELLED]


async def test_stopping_a_tree_cancels_requests_in_flight_and_closes_every_sandbox(make: MakeWorld) -> None:
    waits = asyncio.Event()

    async def policy(messages: Sequence[Message]) -> str:
        if is_leaf(messages):
            await waits.wait()
        return code("llm_batch(['a', 'b'])")

    world = make(policy, max_depth=2)
    await stopped(world, lambda: sum(is_leaf(call.messages) for call in world.chat.calls) == 4)
    assert world.chat.cancelled == 4
    assert set(world.outcomes(SpanKind.QUERY)) == {Outcome.CANCELLED}
    assert world.outcomes(SpanKind.RLM) == [Outcome.CANCELLED] * 3
    assert world.outcomes(SpanKind.SANDBOX) == [Outcome.CANCELLED] * 3


A_LEAF_IS_ASKED = threading.Event()

LEAVES_A_CALL = code(
    "import threading, sys",
    "def ask():",
    "    try: llm_query('a')",
    "    except BaseException: pass",
    "threading.Thread(target=ask, daemon=True).start()",
    f"sys.modules[{__name__!r}].A_LEAF_IS_ASKED.wait()",
)


async def test_a_cell_that_ends_with_calls_in_flight_cancels_them(make: MakeWorld) -> None:
    waits = asyncio.Event()

    async def policy(messages: Sequence[Message]) -> str:
        if is_leaf(messages):
            A_LEAF_IS_ASKED.set()
            await waits.wait()
        return LEAVES_A_CALL if len(messages) == 2 else "FINAL(done)"

    world = make(policy)
    assert (await world.ask()).text == "done"
    assert world.one(QueryEnded).outcome is Outcome.CANCELLED
    assert world.one(CellEnded).outcome is Outcome.OK


class Opening:
    """A factory whose sandboxes open only when told to."""

    def __init__(self) -> None:
        self.inner = FakeSandboxes()
        self.go = asyncio.Event()
        self.asked = 0

    @asynccontextmanager
    async def open(self, context: Context | None, answer: Answer | None, *, height: int = 0) -> AsyncIterator[Sandbox]:
        self.asked += 1
        await self.go.wait()
        async with self.inner.open(context, answer, height=height) as sandbox:
            yield sandbox


def rlm_over(opening: Opening, chat: FakeChatModel, folder: Path) -> RLM:
    contexts = FolderContexts(folder)
    return RLM(chat, Leaf(chat, contexts), opening, contexts, depth=0, max_depth=1, max_iterations=5)


class Calling:
    """A sandbox whose one cell asks from a handler that is nobody's child, as an RPC server's is, and does not wait."""

    name = "calling"
    warm = True

    def __init__(self, answer: Answer, chat: FakeChatModel) -> None:
        self._answer = answer
        self._chat = chat
        self.handler: asyncio.Task[Sequence[Slot]] | None = None

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        async def handle() -> Sequence[Slot]:
            return await self._answer(Batch((Question("a"), Question("b")), 2))

        self.handler = asyncio.create_task(handle())
        await self._chat.until(lambda: self._chat.in_flight == 2)
        return CellResult(CellStatus.OK, final=FinalAnswer("x", "str", 1))

    async def interrupt(self) -> None:
        raise AssertionError("nobody interrupts")

    async def add_context(self, context: Context, variable: str) -> None:
        raise AssertionError("nobody adds a context")

    async def write_file(self, path: str, data: bytes) -> None:
        raise AssertionError("nobody writes a file")

    async def read_file(self, path: str) -> bytes:
        raise AssertionError("nobody reads a file")

    async def lost(self) -> SandboxLost:
        raise AssertionError("nobody waits for its loss")


async def test_questions_of_handlers_that_are_nobodys_children_end_before_their_cell(tmp_path: Path) -> None:
    world = World(tmp_path, replies(code("...")))
    held = asyncio.Event()
    leaf_chat = FakeChatModel(lambda _: held.wait())  # type: ignore[arg-type, return-value]  # never comes to an end
    sandboxes: list[Calling] = []

    class CallingSandboxes:
        @asynccontextmanager
        async def open(
            self, context: Context | None, answer: Answer | None, *, height: int = 0
        ) -> AsyncIterator[Sandbox]:
            assert answer is not None
            sandboxes.append(Calling(answer, leaf_chat))
            yield sandboxes[0]

    sub = Leaf(leaf_chat, world.contexts)
    rlm = RLM(world.chat, sub, CallingSandboxes(), world.contexts, depth=0, max_depth=1, max_iterations=3)
    assert (await rlm.completion(Prompt("q"), world.run)).text == "x"
    assert leaf_chat.cancelled == 2
    assert world.outcomes(SpanKind.QUERY) == [Outcome.CANCELLED] * 2
    world.assert_nothing_is_left()
    handler = sandboxes[0].handler
    assert handler is not None
    with pytest.raises(asyncio.CancelledError):
        await handler


async def test_a_cold_start_is_hidden_behind_the_first_model_call(tmp_path: Path) -> None:
    opening = Opening()
    chat = FakeChatModel(replies(code("FINAL(1)")))
    chat.gate.clear()
    world = World(tmp_path, replies())
    task = asyncio.create_task(rlm_over(opening, chat, tmp_path).completion(Prompt("q"), world.run))
    await chat.until(lambda: chat.in_flight == 1)
    assert opening.asked == 1  # both are under way
    chat.gate.set()
    await chat.until(lambda: chat.in_flight == 0)
    opening.go.set()
    assert (await task).text == "1"
    world.assert_nothing_is_left()


async def test_an_answer_without_code_does_not_wait_for_the_sandbox(tmp_path: Path) -> None:
    world = World(tmp_path, replies())
    opening = Opening()
    chat = FakeChatModel(replies("FINAL(4)"))
    assert (await rlm_over(opening, chat, tmp_path).completion(Prompt("2 + 2?"), world.run)).text == "4"
    assert opening.inner.opened == 0
    world.assert_nothing_is_left()


async def test_stopping_while_the_sandbox_opens(tmp_path: Path) -> None:
    opening = Opening()
    world = World(tmp_path, replies())
    chat = FakeChatModel(replies(code("FINAL(1)")))
    task = asyncio.create_task(rlm_over(opening, chat, tmp_path).completion(Prompt("q"), world.run))
    await chat.until(lambda: bool(chat.calls) and chat.in_flight == 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opening.inner.opened == 0
    world.assert_nothing_is_left()


async def test_a_sandbox_that_fails_to_close_does_not_take_the_answer_away(tmp_path: Path) -> None:
    class Clinging(Opening):
        @asynccontextmanager
        async def open(
            self, context: Context | None, answer: Answer | None, *, height: int = 0
        ) -> AsyncIterator[Sandbox]:
            async with self.inner.open(context, answer, height=height) as sandbox:
                yield sandbox
            raise SandboxUnavailable("the engine is gone")

    world = World(tmp_path, replies())
    rlm = rlm_over(Clinging(), FakeChatModel(replies(code("FINAL(1)"))), tmp_path)
    assert (await rlm.completion(Prompt("q"), world.run)).text == "1"
    assert world.one(SandboxEnded).outcome is Outcome.FAILED
    assert "the engine is gone" in world.one(NoticeGiven).text


# --- events -----------------------------------------------------------------------------------------------------


async def test_spans_nest_as_the_tree_is_drawn(make: MakeWorld) -> None:
    world = make(recursing, max_depth=2)
    await world.ask()
    kinds = {record.span_id: record.kind for record in world.records} | {world.run.id: SpanKind.RUN}
    parents = {(record.kind, kinds[record.parent_id]) for record in world.records if record.parent_id is not None}
    assert parents == {
        (SpanKind.RLM, SpanKind.RUN),
        (SpanKind.ITERATION, SpanKind.RLM),
        (SpanKind.SANDBOX, SpanKind.RLM),
        (SpanKind.MODEL, SpanKind.ITERATION),
        (SpanKind.CELL, SpanKind.ITERATION),
        (SpanKind.BATCH, SpanKind.CELL),
        (SpanKind.QUERY, SpanKind.BATCH),
        (SpanKind.RLM, SpanKind.QUERY),
        (SpanKind.MODEL, SpanKind.QUERY),
    }


async def test_only_the_root_streams_its_text(make: MakeWorld) -> None:
    world = make(recursing, max_depth=2)
    await world.ask()
    streamed = [record for record in world.records if isinstance(record.event, ModelTextStreamed)]
    assert {record.depth for record in streamed} == {0}
    text = "".join(record.event.text for record in streamed if isinstance(record.event, ModelTextStreamed))
    assert text == code("FINAL('0:' + llm_query('from 0'))")
    assert [call.streamed for call in world.chat.calls] == [True, False, False]


async def test_output_is_told_as_it_comes(make: MakeWorld) -> None:
    world = make(replies(code("print('one')", "print('two')", "FINAL(1)")))
    await world.ask()
    assert "".join(event.text for event in world.all_of(CellPrinted)) == "one\ntwo\n"


async def test_a_batch_under_a_cell_tells_its_failures(make: MakeWorld) -> None:
    def policy(messages: Sequence[Message]) -> str | Exception:
        if not is_leaf(messages):
            return code("FINAL(len(llm_batch(['good', 'bad'])))")
        return ModelFailed(ModelFailure.REFUSED, "m", "no") if messages[0].content == "bad" else "fine"

    world = make(policy)
    assert (await world.ask()).text == "2"
    assert world.one(BatchEnded) == BatchEnded(Outcome.OK, failed=1)
    assert [event.failure for event in world.all_of(QueryEnded)] == [None, FailureReason.REFUSED]


# --- sessions ---------------------------------------------------------------------------------------------------


async def test_a_session_goes_on_with_the_same_variables_and_history(tmp_path: Path) -> None:
    world = World(tmp_path, replies(code("kept = 42", "FINAL('first')"), code("FINAL(kept)")))
    assert isinstance(world.model, RLM)
    span = world.run.child(SpanKind.RLM)
    async with world.model.session(None, span) as session:
        assert (await session.ask(world.model.start(Prompt("One?")), span)).text == "first"
        assert (await session.ask(world.model.start(Prompt("Two?")), span)).text == "42"
    messages: Sequence[Message] = world.chat.calls[1].messages
    assert "One?" in messages[1].content
    assert "Next query: Two?" in messages[-1].content
    assert world.sandboxes.opened == 1


async def test_a_question_outside_a_cell_is_turned_down(tmp_path: Path) -> None:
    slots: list[Slot] = []

    class Early(Opening):
        @asynccontextmanager
        async def open(
            self, context: Context | None, answer: Answer | None, *, height: int = 0
        ) -> AsyncIterator[Sandbox]:
            assert answer is not None
            slots.extend(await answer(Batch((Question("now?"),), 1)))
            async with self.inner.open(context, answer, height=height) as sandbox:
                yield sandbox

    world = World(tmp_path, replies())
    chat = FakeChatModel(replies(code("FINAL(1)")))
    await rlm_over(Early(), chat, tmp_path).completion(Prompt("q"), world.run)
    assert [isinstance(slot, Failed) and slot.reason for slot in slots] == [FailureReason.INVALID]
    assert len(chat.calls) == 1


@pytest.mark.parametrize(("depth", "max_depth", "iterations"), [(1, 1, 5), (-1, 1, 5), (0, 1, 0)])
def test_numbers_that_make_no_rlm_are_refused(tmp_path: Path, depth: int, max_depth: int, iterations: int) -> None:
    contexts = FolderContexts(tmp_path)
    chat = FakeChatModel(replies())
    with pytest.raises(InvalidInput):
        RLM(
            chat,
            Leaf(chat, contexts),
            FakeSandboxes(),
            contexts,
            depth=depth,
            max_depth=max_depth,
            max_iterations=iterations,
        )


def test_of_a_deadline_a_margin_is_kept_at_each_level() -> None:
    root = Deadline(100.0, 100.0)
    assert root.sooner(0.0).at == 90.0
    assert root.sooner(0.0).sooner(0.0).at == 81.0
    assert root.sooner(100.5).at == 100.0
    assert Deadline(10_000.0, 10_000.0).sooner(0.0).at == 9_970.0
