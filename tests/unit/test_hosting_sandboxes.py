"""Kept sandboxes: cells one at a time, files, a model within a budget, and an end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import (
    Busy,
    FileFailed,
    FileFailure,
    InvalidInput,
    LossCause,
    NotFound,
    QuotaExceeded,
    RequestConflict,
    SandboxLost,
    ShuttingDown,
)
from orchestrator.events import (
    CellEnded,
    CellStarted,
    ModelCallEnded,
    ModelCallStarted,
    Record,
    SandboxEnded,
    SandboxStarted,
    Sink,
)
from orchestrator.hosting.orders import SandboxModel, SandboxOrder
from orchestrator.hosting.principals import Principal, Quotas
from orchestrator.hosting.sandbox_openings import UNCLAIMED_S
from orchestrator.seams import MAX_FILE_BYTES
from orchestrator.values import Attachment, CellResult, CellStatus, ContextKind, Limits, OutputChunk
from orchestrator.views import SandboxView
from tests.unit.hosting_world import ADMIN, ALICE, BOB, House, house, until
from tests.unit.rlm_world import replies


async def create(desk: House, **order: Any) -> SandboxView:
    return await desk.sandboxes.create(SandboxOrder(**{"principal": ALICE, **order}))


async def run(desk: House, sandbox: SandboxView, code: str, **how: Any) -> CellResult:
    items = [item async for item in desk.sandboxes.run_cell(sandbox.sandbox_id, code, **how, principal=ALICE)]
    assert all(isinstance(item, OutputChunk) for item in items[:-1])
    result = items[-1]
    assert isinstance(result, CellResult)
    assert "".join(item.text for item in items[:-1] if isinstance(item, OutputChunk)) == result.stdout.text
    return result


async def test_variables_stay_from_cell_to_cell(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk, context=Attachment(ContextKind.JSON, b"[1, 2]"), labels={"a": "b"})
        assert (sandbox.busy, sandbox.cells, sandbox.labels) == (False, 0, {"a": "b"})
        await run(desk, sandbox, "x = sum(context)")
        assert (await run(desk, sandbox, "print(x)")).stdout.text == "3\n"
        failed = await run(desk, sandbox, "1/0")
        assert failed.status is CellStatus.ERROR
        assert "llm_query" not in (await run(desk, sandbox, "print(dir())")).stdout.text
        assert (await desk.sandboxes.get(sandbox.sandbox_id, principal=ALICE)).cells == 4


async def test_idle_time_begins_anew_with_each_cell_and_ends_it(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk, idle_timeout_s=60)
        assert sandbox.expires_at == desk.clock.time + 60
        desk.clock.advance(59)
        await run(desk, sandbox, "1")
        desk.clock.advance(59)
        assert desk.fakes.open_now == 1
        desk.clock.advance(1)
        await until(lambda: desk.fakes.open_now == 0)
        with pytest.raises(NotFound, match="idle for 60 s"):
            await run(desk, sandbox, "1")


async def test_one_cell_at_a_time_and_an_interrupt_keeps_what_there_is(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk)
        items = desk.sandboxes.run_cell(sandbox.sandbox_id, "x = 1\nprint('on')\nwhile True: pass", principal=ALICE)
        assert isinstance(await anext(items), OutputChunk)
        assert (await desk.sandboxes.get(sandbox.sandbox_id, principal=ALICE)).expires_at is None
        desk.clock.advance(100_000)
        with pytest.raises(Busy):
            await run(desk, sandbox, "2")
        with pytest.raises(Busy):
            await desk.sandboxes.write_file(sandbox.sandbox_id, "a", b"", principal=ALICE)
        await desk.sandboxes.interrupt(sandbox.sandbox_id, principal=ALICE)
        result = [item async for item in items][-1]
        assert isinstance(result, CellResult)
        assert result.status is CellStatus.INTERRUPTED
        assert (await run(desk, sandbox, "print(x)")).stdout.text == "1\n"


async def test_a_caller_who_goes_away_interrupts_the_cell_and_keeps_the_sandbox(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk)
        items = desk.sandboxes.run_cell(sandbox.sandbox_id, "x = 1\nprint('on')\nwhile True: pass", principal=ALICE)
        await anext(items)
        await items.aclose()  # type: ignore[attr-defined]
        await until(lambda: not desk.sandboxes._kept[sandbox.sandbox_id].busy)
        assert (await run(desk, sandbox, "print(x)")).stdout.text == "1\n"


async def test_files_go_in_and_out_by_plain_relative_paths(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk)
        write, read = desk.sandboxes.write_file, desk.sandboxes.read_file
        await write(sandbox.sandbox_id, "data/table.csv", b"a,b", principal=ALICE)
        assert await read(sandbox.sandbox_id, "data/table.csv", principal=ALICE) == b"a,b"
        for path in ("", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "a\0b", "a\nb", "x" * 256, "\udc80"):
            with pytest.raises(FileFailed) as caught:
                await write(sandbox.sandbox_id, path, b"", principal=ALICE)
            assert caught.value.kind is FileFailure.INVALID_PATH
        with pytest.raises(FileFailed) as caught:
            await write(sandbox.sandbox_id, "big", bytes(MAX_FILE_BYTES + 1), principal=ALICE)
        assert caught.value.kind is FileFailure.TOO_LARGE
        with pytest.raises(FileFailed) as caught:
            await read(sandbox.sandbox_id, "none", principal=ALICE)
        assert caught.value.kind is FileFailure.NOT_FOUND
        with pytest.raises(NotFound):
            await read(sandbox.sandbox_id, "data/table.csv", principal=BOB)


async def test_its_code_may_ask_a_model_within_its_budget_for_life(tmp_path: Path) -> None:
    async with house(tmp_path, lambda messages: messages[-1].content.upper()) as desk:
        sandbox = await create(desk, model=SandboxModel("small", Limits(max_calls=2)))
        assert (await run(desk, sandbox, "print(llm_query('hi'))")).stdout.text == "HI\n"
        assert (await run(desk, sandbox, "print(*llm_batch(['a', 'a', 'b']))")).stdout.text.startswith("A A Error: ")
        view = await desk.sandboxes.get(sandbox.sandbox_id, principal=ALICE)
        assert view.spent.calls == 2
        await desk.sandboxes.delete(sandbox.sandbox_id, principal=ALICE)
        assert desk.store.total_of("alice").tokens == view.spent.usage.total_tokens > 0


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_cost_usd=float("nan")),
        Limits(max_cost_usd=float("inf")),
        Limits(max_cost_usd=-1.0),
        Limits(max_tokens=0),
        Limits(max_calls=-1),
        Limits(max_seconds=float("nan")),
    ],
)
async def test_limits_of_a_sandbox_keep_the_rules_of_a_run(tmp_path: Path, limits: Limits) -> None:
    async with house(tmp_path, replies()) as desk:
        with pytest.raises(InvalidInput):
            await create(desk, model=SandboxModel("small", limits))
        assert desk.fakes.opened == 0


async def test_the_same_request_is_one_sandbox_and_another_a_conflict(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        first, second = await asyncio.gather(create(desk, request_id="r"), create(desk, request_id="r"))
        assert first.sandbox_id == second.sandbox_id
        with pytest.raises(RequestConflict):
            await create(desk, request_id="r", labels={"a": "b"})
        assert (await create(desk, request_id="r", principal=BOB)).sandbox_id != first.sandbox_id
        await desk.sandboxes.delete(first.sandbox_id, principal=ALICE)
        assert (await create(desk, request_id="r")).sandbox_id != first.sandbox_id
        assert desk.fakes.opened == 3


async def test_a_sandbox_that_nobody_asks_for_again_goes_by_itself(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        for again in (True, False):
            opened = desk.fakes.opened
            creating = asyncio.create_task(create(desk, request_id="r"))
            await asyncio.sleep(0)
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating
            await until(lambda: desk.fakes.opened == opened + 1)  # noqa: B023 - called at once
            desk.clock.advance(UNCLAIMED_S - 1)
            if again:
                sandbox = await create(desk, request_id="r")
                desk.clock.advance(UNCLAIMED_S)
                assert (await run(desk, sandbox, "print(1)")).stdout.text == "1\n"
                await desk.sandboxes.delete(sandbox.sandbox_id, principal=ALICE)
        desk.clock.advance(1)
        await until(lambda: desk.fakes.open_now == 0)
        assert (await desk.sandboxes.list(principal=ADMIN)).items == ()
        assert desk.fakes.opened == 2


async def test_what_a_sandbox_has_used_is_on_record_after_each_cell(tmp_path: Path) -> None:
    async with house(tmp_path, lambda messages: "answer") as desk:
        sandbox = await create(desk, model=SandboxModel("small"))
        for cells in (1, 2):
            await run(desk, sandbox, f"llm_query('a question {cells}')")
            spent = (await desk.sandboxes.get(sandbox.sandbox_id, principal=ALICE)).spent
            assert spent.calls == cells
            assert desk.store.total_of("alice").tokens == spent.usage.total_tokens > 0
        await desk.sandboxes.delete(sandbox.sandbox_id, principal=ALICE)
        assert desk.store.total_of("alice").cost_usd == pytest.approx(spent.cost_usd)


async def test_what_happens_in_a_sandbox_is_told_to_who_listens(tmp_path: Path) -> None:
    records: list[Record] = []
    told: list[tuple[Mapping[str, str], str]] = []

    def sinks_of(trace: Mapping[str, str], name: str) -> tuple[Sink]:
        told.append((trace, name))
        return (records.append,)

    async with house(tmp_path, lambda messages: "answer", sinks_of=sinks_of) as desk:
        trace = {"traceparent": "00-1-2-01"}
        sandbox = await create(desk, model=SandboxModel("small"), trace_context=trace)
        await run(desk, sandbox, "llm_query('a')")
        await desk.sandboxes.delete(sandbox.sandbox_id, principal=ALICE)
        assert told == [(trace, sandbox.sandbox_id)]
    kinds = [type(record.event) for record in records]
    assert (kinds[0], kinds[-1]) == (SandboxStarted, SandboxEnded)
    assert {CellStarted, ModelCallStarted, ModelCallEnded, CellEnded} <= set(kinds)


async def test_its_time_is_for_its_whole_life_and_ends_the_cell_too(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk, model=SandboxModel("small", Limits(max_seconds=100)))
        assert sandbox.expires_at == desk.clock.time + 100
        desk.clock.advance(60)
        items = desk.sandboxes.run_cell(sandbox.sandbox_id, "print('on')\nwhile True: pass", principal=ALICE)
        assert isinstance(await anext(items), OutputChunk)
        desk.clock.advance(40)
        with pytest.raises(SandboxLost):
            async for _ in items:
                pass
        await until(lambda: desk.fakes.open_now == 0)
        with pytest.raises(NotFound, match="max_seconds=100 s"):
            await run(desk, sandbox, "1")
        with pytest.raises(InvalidInput, match="max_sandboxes"):
            await create(desk, model=SandboxModel("small", Limits(max_sandboxes=5)))


async def test_a_caller_who_hangs_up_without_a_request_id_leaves_no_sandbox(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        creating = asyncio.create_task(create(desk))
        await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await until(lambda: desk.fakes.closed == 1)
        assert (await desk.sandboxes.list(principal=ADMIN)).items == ()


async def test_a_lost_sandbox_is_gone_and_says_how(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk)
        desk.fakes.live[0].lose(LossCause.OUT_OF_MEMORY, "hit its limit")
        await until(lambda: desk.fakes.open_now == 0)
        with pytest.raises(NotFound, match="hit its limit"):
            await desk.sandboxes.get(sandbox.sandbox_id, principal=ALICE)


async def test_a_sandbox_deleted_under_a_cell_ends_it(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk)
        running = asyncio.create_task(run(desk, sandbox, "while True: pass"))
        await until(lambda: len(desk.fakes.cells) == 1)
        await desk.sandboxes.delete(sandbox.sandbox_id, principal=ALICE)
        with pytest.raises(SandboxLost):
            await running
        with pytest.raises(NotFound, match="deleted"):
            await desk.sandboxes.delete(sandbox.sandbox_id, principal=ALICE)


async def test_sandboxes_are_listed_page_by_page_each_owner_s_own(tmp_path: Path) -> None:
    async with house(tmp_path, replies(), capacity=8) as desk:
        made = [(await create(desk)).sandbox_id for _ in range(3)]
        await create(desk, principal=BOB)
        page = await desk.sandboxes.list(2, principal=ALICE)
        rest = await desk.sandboxes.list(2, page.next_token, principal=ALICE)
        assert [view.sandbox_id for view in (*page.items, *rest.items)] == made[::-1]
        assert rest.next_token == ""
        with pytest.raises(InvalidInput):
            await desk.sandboxes.list(0, principal=ALICE)


async def test_room_and_quotas_are_given_back(tmp_path: Path) -> None:
    alice = Principal("alice", Quotas(max_sandboxes=1))
    async with house(tmp_path, replies(), capacity=4) as desk:
        first = await create(desk, principal=alice)
        with pytest.raises(QuotaExceeded, match="max_sandboxes"):
            await create(desk, principal=alice)
        await create(desk, principal=BOB)
        with pytest.raises(QuotaExceeded, match="kept_sandboxes"):
            await create(desk, principal=BOB)
        await desk.sandboxes.delete(first.sandbox_id, principal=alice)
        with pytest.raises(InvalidInput):
            await create(desk, principal=BOB, context=Attachment(ContextKind.JSON, b"{"))
        await create(desk, principal=BOB)


async def test_draining_waits_for_cells_and_ends_all(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        sandbox = await create(desk)
        desk.chat.gate.clear()
        cell = asyncio.create_task(run(desk, sandbox, "print('done')"))
        await until(lambda: len(desk.fakes.cells) == 1)
        await desk.sandboxes.drain(30)
        assert (await cell).stdout.text == "done\n"
        with pytest.raises(ShuttingDown):
            await create(desk)


@pytest.mark.parametrize(
    ("order", "name"),
    [
        ({"idle_timeout_s": 0.0}, "idle_timeout"),
        ({"idle_timeout_s": 1e9}, "idle_timeout"),
        ({"model": SandboxModel("")}, "model"),
    ],
)
async def test_an_order_that_breaks_a_rule_is_refused_by_name(tmp_path: Path, order: dict[str, Any], name: str) -> None:
    async with house(tmp_path, replies()) as desk:
        with pytest.raises(InvalidInput) as caught:
            await create(desk, **order)
        assert caught.value.name == name
