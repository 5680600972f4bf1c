"""Runs at the desk: started once, watched by many, cancelled, and on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import RunSettings
from orchestrator.errors import (
    Busy,
    InvalidInput,
    ModelFailed,
    ModelFailure,
    NotFound,
    QuotaExceeded,
    RequestConflict,
    ShuttingDown,
    TooLarge,
)
from orchestrator.events import (
    CellPrinted,
    ModelCallEnded,
    ModelCallStarted,
    ModelTextStreamed,
    Record,
    RunEnded,
    RunStarted,
)
from orchestrator.hosting.orders import RunQuery, SandboxModel, SandboxOrder
from orchestrator.hosting.principals import Principal, Quotas
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.hosting.settings import HostingSettings
from orchestrator.protocol.rlm.v1 import run_pb2
from orchestrator.store.database import PAGE_BYTES, Store
from orchestrator.store.rows import StoredRun
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.testing.fake_sandbox import FakeSandboxes
from orchestrator.values import Attachment, ContextKind, Ending, Message
from orchestrator.views import Missed, RunState
from orchestrator.wire.views import run_message
from tests.unit import hosting_world as world
from tests.unit.hosting_world import ADMIN, ALICE, BOB, house, until
from tests.unit.rlm_world import code, is_leaf, replies

MIB = 1 << 20
ANSWER = code("print('looking')", "FINAL(len(context))")
TEXT = Attachment(ContextKind.TEXT, b"the whole text")


async def test_a_run_goes_on_by_itself_and_is_on_record(tmp_path: Path) -> None:
    async with house(tmp_path, replies(ANSWER)) as desk:
        begun = await desk.start("How long?", context=TEXT, labels={"a": "1"})
        assert (begun.state, begun.query, begun.labels) == (RunState.RUNNING, "How long?", {"a": "1"})
        run = await desk.ended(begun)
        assert (run.state, run.answer, run.ending, run.problem) == (RunState.SUCCEEDED, "14", Ending.FINAL, None)
        assert run.context is not None
        assert run.context.size_bytes == 14
        assert (run.spent.calls, run.spent.sandboxes) == (1, 1)
        assert run.spent_by_depth.keys() == {0}
        assert run.settings.max_depth == 1
    with Store.open(tmp_path / "store.db") as store:
        kept = store.find_run(run.run_id)
        assert kept is not None
        assert (kept.state, kept.answer, kept.last_seq) == (RunState.SUCCEEDED, "14", run.last_seq)


async def test_the_same_order_is_one_run_and_another_one_a_conflict(tmp_path: Path) -> None:
    async with house(tmp_path, lambda _: ANSWER) as desk:
        same = {"request_id": "r1", "context": TEXT, "settings": RunSettings(model="m")}
        first, second = await asyncio.gather(desk.start("q", **same), desk.start("q", **same))
        assert first.run_id == second.run_id
        await desk.ended(first)
        assert (await desk.start("q", **same)).run_id == first.run_id
        for change in ({"context": None}, {"settings": RunSettings(model="n")}, {"labels": {"a": "b"}}):
            with pytest.raises(RequestConflict):
                await desk.start("q", **{**same, **change})
        with pytest.raises(RequestConflict):
            await desk.start("another q", **same)
        assert (await desk.ask("another q", **{**same, "principal": BOB})).run_id != first.run_id
        assert len(desk.chat.calls) == 2


async def test_the_same_order_is_the_same_run_after_a_restart_with_other_defaults(tmp_path: Path) -> None:
    given = {"max_calls": 5}
    runs: list[str] = []
    changes: tuple[dict[str, Any], ...] = ({}, {"max_iterations": 7, "model": "other"})
    for defaults in changes:
        async with house(tmp_path, lambda _: ANSWER, **defaults) as desk:
            settings = desk.runs.settings_of(given)
            same = {"request_id": "r1", "context": TEXT, "settings": settings, "chosen": given}
            runs.append((await desk.ask("q", **same)).run_id)
            with pytest.raises(RequestConflict):
                await desk.start("q", **{**same, "chosen": {"max_calls": 6}})
    assert runs[0] == runs[1]


async def test_a_caller_who_hangs_up_leaves_the_run_to_be_found_by_its_request(tmp_path: Path) -> None:
    async with house(tmp_path, lambda _: ANSWER) as desk:
        starting = asyncio.create_task(desk.start("q", request_id="r1", context=TEXT))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        run = await desk.ask("q", request_id="r1", context=TEXT)
        assert run.state is RunState.SUCCEEDED
        assert len((await desk.runs.list(RunQuery(), principal=ALICE)).items) == 1


async def test_what_a_watcher_sees_live_is_what_is_recorded(tmp_path: Path) -> None:
    async with house(tmp_path, replies(ANSWER)) as desk:
        desk.chat.gate.clear()
        run = await desk.start(context=TEXT)
        watching = asyncio.create_task(desk.seen(run))
        await desk.chat.until(lambda: desk.chat.in_flight == 1)
        desk.chat.gate.set()
        live = [item for item in await watching if isinstance(item, Record)]
        assert isinstance(live[0].event, RunStarted)
        assert isinstance(live[-1].event, RunEnded)
        assert any(isinstance(record.event, ModelTextStreamed) for record in live)
        kept = [record for record in live if not isinstance(record.event, ModelTextStreamed | CellPrinted)]
        assert await desk.seen(run) == kept
        assert (await desk.runs.get(run.run_id, principal=ALICE)).last_seq == live[-1].seq
    async with house(tmp_path, replies()) as desk:  # the same store after a restart
        for at, record in enumerate(kept):
            assert await desk.seen(run, record.seq) == kept[at + 1 :]


async def test_a_watch_that_begins_in_the_middle_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, replies("nothing yet", "still nothing", ANSWER)) as desk:
        begun = await desk.start(context=TEXT)
        every: list[Record | Missed] = []
        tasks: list[asyncio.Task[list[Record | Missed]]] = []
        async for item in desk.runs.watch(begun.run_id, principal=ALICE):
            every.append(item)
            if isinstance(item, Record) and item.seq % 5 == 0:
                tasks.append(asyncio.create_task(desk.seen(begun, item.seq, with_pieces=False)))
        whole = [item for item in every if isinstance(item, Record)]
        whole = [record for record in whole if not isinstance(record.event, ModelTextStreamed | CellPrinted)]
        assert len(tasks) > 3
        for number, task in enumerate(tasks):
            assert await task == [record for record in whole if record.seq > 5 * (number + 1)]


async def test_a_slow_watcher_is_told_what_it_missed_and_gets_it_with_another_watch(tmp_path: Path) -> None:
    settings = HostingSettings(max_depth=2, watcher_queue=4)
    async with house(tmp_path, replies("no", "no", "no", ANSWER), settings=settings) as desk:
        desk.chat.gate.clear()
        run = await desk.start(context=TEXT)
        slow = desk.runs.watch(run.run_id, with_pieces=False, principal=ALICE)
        seen: list[Record | Missed] = []
        while not any(isinstance(item, Record) and isinstance(item.event, ModelCallStarted) for item in seen):
            seen.append(await anext(slow))
        first_live = asyncio.ensure_future(anext(slow))
        live = desk.runs._runs.get(run.run_id)
        assert live is not None
        (watcher,) = live.recording._watchers
        await until(lambda: bool(watcher._changed._waiters) or first_live.done())
        desk.chat.gate.set()
        seen.append(await first_live)
        await desk.ended(run)  # without a look of the slow one
        seen += [item async for item in slow]
        (missed,) = [item for item in seen if isinstance(item, Missed)]
        got = {item.seq for item in seen if isinstance(item, Record)}
        kept = {item.seq for item in await desk.seen(run) if isinstance(item, Record)}
        assert got | {seq for seq in kept if missed.first_seq <= seq <= missed.last_seq} == kept
        assert not any(missed.first_seq <= seq <= missed.last_seq for seq in got)
        order = [item.last_seq if isinstance(item, Missed) else item.seq for item in seen]
        assert all(earlier < later for earlier, later in pairwise(order))


async def test_what_comes_while_a_watcher_reads_the_past_is_not_missed(tmp_path: Path) -> None:
    settings = HostingSettings(max_depth=2, watcher_queue=1)
    async with house(tmp_path, replies("no", "no", "no", ANSWER), settings=settings) as desk:
        desk.chat.gate.clear()
        run = await desk.start(context=TEXT)
        await desk.chat.until(lambda: desk.chat.in_flight == 1)
        slow = desk.runs.watch(run.run_id, with_pieces=False, principal=ALICE)
        seen: list[Record | Missed] = [await anext(slow)]
        desk.chat.gate.set()
        await desk.ended(run)
        seen += [item async for item in slow]
        assert seen == await desk.seen(run)


async def test_cancelling_ends_requests_and_sandboxes_before_it_returns(tmp_path: Path) -> None:
    async with house(tmp_path, replies(ANSWER)) as desk:
        desk.chat.gate.clear()
        run = await desk.start(context=TEXT)
        await desk.chat.until(lambda: desk.chat.in_flight == 1)
        with pytest.raises(Busy):
            await desk.runs.delete(run.run_id, principal=ALICE)
        stopped = await desk.runs.cancel(run.run_id, principal=ALICE)
        assert stopped.state is RunState.CANCELLED
        assert stopped.problem is not None
        assert "alice" in stopped.problem.message
        assert (desk.chat.in_flight, desk.fakes.open_now, desk.files()) == (0, 0, [])
        assert await desk.runs.cancel(run.run_id, principal=ALICE) == stopped
        last = (await desk.seen(run))[-1]
        assert isinstance(last, Record)
        assert isinstance(last.event, RunEnded)
        await desk.runs.delete(run.run_id, principal=ALICE)
        with pytest.raises(NotFound):
            await desk.runs.get(run.run_id, principal=ALICE)


async def test_a_run_that_is_cancelled_before_its_first_step_still_ends(tmp_path: Path) -> None:
    async with house(tmp_path, replies(ANSWER)) as desk:
        run = await desk.start(context=TEXT)
        stopped = await desk.runs.cancel(run.run_id, principal=ALICE)
        assert stopped.state is RunState.CANCELLED


async def test_a_failed_run_says_why_in_words_for_programs(tmp_path: Path) -> None:
    async with house(tmp_path, replies(ModelFailed(ModelFailure.AUTHENTICATION, "fake", "no key"))) as desk:
        run = await desk.ask()
        assert run.state is RunState.FAILED
        assert run.problem is not None
        assert run.problem.reason == "MODEL_FAILED"
        assert run.problem.metadata["kind"] == "authentication"
        assert "no key" in run.problem.message


async def test_an_unforeseen_failure_is_an_ended_run_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, replies(ZeroDivisionError("a bug"))) as desk:
        run = await desk.ask()
        assert run.state is RunState.FAILED
        assert run.problem is not None
        assert run.problem.reason == "INTERNAL"
        assert "a bug" not in run.problem.message
        assert "a bug" in caplog.text


@pytest.mark.parametrize(
    "reply",
    ["hi \ud83d\n" + code("FINAL('a')"), "FINAL(a \ud83d b)", code("FINAL('a' + chr(0xd83d))")],
    ids=["in a reply", "in an answer", "out of a cell"],
)
async def test_text_that_utf8_cannot_hold_ends_no_recording(tmp_path: Path, reply: str) -> None:
    async with house(tmp_path, lambda _: reply) as desk:
        async with asyncio.timeout(20):
            run = await desk.ask()
        assert run.state is RunState.SUCCEEDED
        assert run.answer is not None
        assert run.answer.startswith("a")
        kinds = [type(item.event) for item in await desk.seen(run) if isinstance(item, Record)]
        assert kinds[0] is RunStarted
        assert kinds[-1] is RunEnded
        assert ModelCallEnded in kinds
        kept = desk.store.find_run(run.run_id)
        assert kept is not None
        assert kept.state is RunState.SUCCEEDED
        await desk.runs.delete(run.run_id, principal=ALICE)


async def test_a_run_whose_end_cannot_be_recorded_lets_its_watchers_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, lambda _: ANSWER) as desk:
        run = await desk.start(context=TEXT)

        def broken(run: object) -> None:
            raise ZeroDivisionError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(desk.store, "update_run", broken)
            async with asyncio.timeout(20):
                assert await desk.seen(run)
                stopped = await desk.runs.cancel(run.run_id, principal=ALICE)
        assert stopped.state is RunState.SUCCEEDED
        await desk.runs._runs.save_ended()
        await desk.runs.delete(run.run_id, principal=ALICE)


async def test_a_page_of_large_runs_ends_early_and_the_next_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        for number in range(20):
            desk.store.put_run(StoredRun(run_id=f"run_{number}", principal="alice", query="x" * MIB, started_at=number))
        listed: list[str] = []
        token, pages = "", 0
        while pages == 0 or token:
            page = await desk.runs.list(RunQuery(page_size=1000, page_token=token), principal=ALICE)
            message = run_pb2.ListRunsResponse(runs=map(run_message, page.items))
            assert message.ByteSize() <= PAGE_BYTES
            listed += [run.run_id for run in page.items]
            token, pages = page.next_token, pages + 1
        assert (listed, pages) == ([f"run_{number}" for number in reversed(range(20))], 2)


async def test_what_is_no_query_but_a_context_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        for order in (
            {"query": "\u20ac" * (MIB // 2)},
            {"query": "q", "settings": RunSettings(instructions=("x" * MIB,))},
        ):
            with pytest.raises(TooLarge):
                await desk.start(**order)
        assert (await desk.runs.list(RunQuery(), principal=ALICE)).items == ()


async def test_what_others_made_is_not_there(tmp_path: Path) -> None:
    async with house(tmp_path, lambda _: ANSWER) as desk:
        run = await desk.ask(context=TEXT)
        for call in (desk.runs.get, desk.runs.cancel, desk.runs.delete):
            with pytest.raises(NotFound):
                await call(run.run_id, principal=BOB)
        with pytest.raises(NotFound):
            await anext(desk.runs.watch(run.run_id, principal=BOB))
        assert (await desk.runs.list(RunQuery(), principal=BOB)).items == ()
        assert [seen.run_id for seen in (await desk.runs.list(RunQuery(), principal=ADMIN)).items] == [run.run_id]


async def test_the_list_shows_what_a_run_has_used_so_far(tmp_path: Path) -> None:
    def policy(_: Sequence[Message]) -> str:
        desk.chat.gate.clear()
        return "nothing yet" if len(desk.chat.calls) == 1 else ANSWER

    async with house(tmp_path, policy) as desk:
        run = await desk.start(context=TEXT)
        await desk.chat.until(lambda: len(desk.chat.calls) == 2)
        (listed,) = (await desk.runs.list(RunQuery(states=frozenset({RunState.RUNNING})), principal=ALICE)).items
        assert (listed.run_id, listed.spent.calls) == (run.run_id, 1)
        assert listed.last_seq > 0
        desk.chat.gate.set()
        await desk.ended(run)


@pytest.mark.parametrize(
    ("order", "name"),
    [
        ({"query": " "}, "query"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "ä"}, "request_id"),
        ({"labels": {str(n): "" for n in range(33)}}, "labels"),
        ({"labels": {"a": "x" * 257}}, "labels"),
        ({"settings": RunSettings(max_depth=3)}, "max_depth"),
        ({"keep_session_s": 1e9}, "keep_session"),
        ({"keep_session_s": float("nan")}, "keep_session"),
        ({"session_id": "s", "context": TEXT}, "context"),
    ],
)
async def test_an_order_that_breaks_a_rule_is_refused_by_name(tmp_path: Path, order: dict[str, Any], name: str) -> None:
    async with house(tmp_path, replies()) as desk:
        given: dict[str, Any] = {"query": "q", **order}
        with pytest.raises(InvalidInput) as caught:
            await desk.start(**given)
        assert caught.value.name == name


async def test_a_context_that_is_too_large_or_broken_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    settings = HostingSettings(max_depth=2, max_inline_bytes=10)
    async with house(tmp_path, replies(), settings=settings) as desk:
        with pytest.raises(TooLarge, match="max_inline_bytes"):
            await desk.start(context=Attachment(ContextKind.TEXT, b"x" * 11))
        with pytest.raises(InvalidInput):
            await desk.start(context=Attachment(ContextKind.JSON, b"{"))
        assert (await desk.runs.list(RunQuery(), principal=ALICE)).items == ()


async def test_settings_are_the_defaults_with_checked_changes(tmp_path: Path) -> None:
    async with house(tmp_path, replies(), max_iterations=7) as desk:
        made = desk.runs.settings_of({"model": "m", "models": ("a", "b"), "max_cost_usd": 0.5})
        assert (made.model, made.models, made.max_cost_usd, made.max_iterations) == ("m", ("a", "b"), 0.5, 7)
        for bad in ({"max_depth": 0}, {"no_such": 1}, {"max_cost_usd": -1.0}):
            with pytest.raises(InvalidInput) as caught:
                desk.runs.settings_of(bad)
            assert caught.value.name in bad


async def test_running_runs_are_limited_for_each_and_for_all(tmp_path: Path) -> None:
    settings = HostingSettings(max_depth=2, max_running=2)
    alice = Principal("alice", Quotas(max_runs=1))
    async with house(tmp_path, lambda _: ANSWER, settings=settings) as desk:
        desk.chat.gate.clear()
        run = await desk.start(context=TEXT, principal=alice)
        with pytest.raises(QuotaExceeded, match="max_runs"):
            await desk.start(context=TEXT, principal=alice)
        await desk.start(context=TEXT, principal=BOB)
        with pytest.raises(QuotaExceeded, match="max_running"):
            await desk.start(context=TEXT, principal=BOB)
        await desk.runs.cancel(run.run_id, principal=alice)
        await desk.start(context=TEXT, principal=alice)


async def test_what_is_left_of_a_quota_narrows_a_run_and_nothing_left_refuses_it(tmp_path: Path) -> None:
    alice = Principal("alice", Quotas(max_tokens=100_000, max_cost_usd=50.0))
    async with house(tmp_path, lambda _: ANSWER) as desk:
        first = await desk.ask(context=TEXT, principal=alice)
        assert first.settings.max_tokens == 100_000
        second = await desk.ask(context=TEXT, principal=alice)
        assert second.settings.max_tokens == 100_000 - first.spent.usage.total_tokens
        poor = Principal("alice", Quotas(max_tokens=first.spent.usage.total_tokens))
        with pytest.raises(QuotaExceeded, match="max_tokens"):
            await desk.start(context=TEXT, principal=poor)
        broke = Principal("alice", Quotas(max_cost_usd=first.spent.cost_usd))
        with pytest.raises(QuotaExceeded, match="max_cost_usd"):
            await desk.start(context=TEXT, principal=broke)
        assert (await desk.ask(context=TEXT, principal=BOB)).state is RunState.SUCCEEDED


async def test_draining_lets_runs_end_takes_no_more_and_cancels_the_rest(tmp_path: Path) -> None:
    async with house(tmp_path, lambda _: ANSWER) as desk:
        desk.chat.gate.clear()
        quick = await desk.start(context=TEXT)
        await desk.chat.until(lambda: desk.chat.in_flight == 1)
        draining = asyncio.create_task(desk.runs.drain(30))
        await until(lambda: desk.runs.premises.closing)
        with pytest.raises(ShuttingDown):
            await desk.start(context=TEXT)
        desk.chat.gate.set()
        await draining
        assert (await desk.runs.get(quick.run_id, principal=ALICE)).state is RunState.SUCCEEDED


async def test_what_is_left_at_the_end_is_cancelled_and_on_record(tmp_path: Path) -> None:
    async with house(tmp_path, lambda _: ANSWER) as desk:
        desk.chat.gate.clear()
        run = await desk.start(context=TEXT)
        await desk.chat.until(lambda: desk.chat.in_flight == 1)
    with Store.open(tmp_path / "store.db") as store:
        kept = store.find_run(run.run_id)
        assert kept is not None
        assert kept.state is RunState.CANCELLED
        assert kept.problem is not None
        assert "shut down" in kept.problem.message
        assert isinstance(store.records(run.run_id)[-1].event, RunEnded)


async def test_a_service_deeper_than_its_room_does_not_open(tmp_path: Path) -> None:
    orchestrator = world.FakeOrchestrator(
        world.config(capacity=3), FakeChatModel(lambda _: ""), FakeSandboxes(), tmp_path / "contexts"
    )
    with Store.open(tmp_path / "store.db") as store, pytest.raises(InvalidInput, match="capacity"):
        async with RunDesk.open(orchestrator, store, HostingSettings(max_depth=4)):
            pass


async def test_a_quota_holds_for_runs_and_sandboxes_at_the_same_time(tmp_path: Path) -> None:
    long = code("print(llm_query('x' * 400))", "FINAL('x')") + "#" * 8000
    policy = lambda asked: "y" * 4000 if is_leaf(asked) else long  # noqa: E731
    async with house(tmp_path, policy, capacity=20) as desk:
        alice = world.with_quotas(max_cost_usd=12.0)
        desk.chat.gate.clear()
        order = SandboxOrder(principal=alice, model=SandboxModel("m"))
        boxes = [await desk.sandboxes.create(order) for _ in range(2)]
        runs = [await desk.start(f"q{number}", principal=alice) for number in range(6)]
        asking = [
            asyncio.create_task(_all(desk.sandboxes.run_cell(box.sandbox_id, "llm_query('z' * 4000)", principal=alice)))
            for box in boxes
        ]
        await desk.chat.until(lambda: desk.chat.in_flight > 0)
        desk.chat.gate.set()
        states = {(await desk.ended(run)).state for run in runs}
        await asyncio.gather(*asking)
        assert RunState.FAILED in states  # they could not all have what each of them could have had
        account = await desk.runs.premises.account_of("alice")
        spent = sum([(await desk.runs.get(run.run_id, principal=ADMIN)).spent.cost_usd for run in runs])
        spent += sum([(await desk.sandboxes.get(box.sandbox_id, principal=ADMIN)).spent.cost_usd for box in boxes])
        assert account.cost_usd == pytest.approx(spent)
        assert 0 < spent <= 12.0
        for box in boxes:
            await desk.sandboxes.delete(box.sandbox_id, principal=ADMIN)
        assert desk.store.total_of("alice").cost_usd == pytest.approx(spent)


async def _all(items: AsyncIterator[object]) -> list[object]:
    return [item async for item in items]
