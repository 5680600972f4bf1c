"""`orchestrator.client`'s `RLM` and `Sandbox`, sync and async, against the real gRPC server before fake desks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.client import RLM, Sandbox, close
from orchestrator.errors import InvalidInput, SandboxLost, ServiceFailed, ServiceFailure
from orchestrator.events import Record
from orchestrator.values import Attachment, CellResult, CellStatus, ContextKind, Ending
from orchestrator.views import RunState
from tests.unit.fake_desks import WHOLE, FakeRuns, FakeSandboxes, fake_server

OK = CellResult(CellStatus.OK)


@asynccontextmanager
async def _served(
    folder: Path, runs: FakeRuns | None = None, sandboxes: FakeSandboxes | None = None
) -> AsyncIterator[str]:
    async with fake_server(folder, runs, sandboxes) as server:
        try:
            yield str(server.addresses[0])
        finally:
            await asyncio.to_thread(close)  # the process's clients, which are in a loop of their own


async def test_a_completion_in_a_program_without_a_loop(tmp_path: Path) -> None:
    runs = FakeRuns()
    async with _served(tmp_path, runs) as address:
        rlm = RLM(server=address, model="big", max_depth=2, labels={"team": "a"})
        assert await asyncio.to_thread(rlm.completion, "some text", "Who?") == "The gardener."
    (order,) = runs.orders
    assert (order.query, order.context, order.labels) == (
        "Who?",
        Attachment(ContextKind.TEXT, b"some text"),
        {"team": "a"},
    )
    assert order.settings is not None
    assert (order.settings.model, order.settings.max_depth) == ("big", 2)


async def test_a_run_in_async_code_gives_all_of_the_result_and_its_records(tmp_path: Path) -> None:
    records: list[Record] = []
    async with _served(tmp_path) as address:
        result = await RLM(server=address, sinks=[records.append]).arun(query="Who?")
    assert (result.answer, result.ending, result.spent.calls, result.seconds) == (
        "The gardener.",
        Ending.FINAL,
        5,
        4.2,
    )
    assert records == WHOLE
    assert [(batch.depth, batch.size, batch.failed, batch.spent.calls) for batch in result.by_batch] == [(0, 3, 1, 3)]


async def test_a_sink_that_raises_does_not_end_the_run(tmp_path: Path) -> None:
    def broken(record: Record) -> None:
        raise RuntimeError("no disk")

    seen: list[Record] = []
    async with _served(tmp_path) as address:
        assert await RLM(server=address, sinks=[broken, seen.append]).acompletion(query="Who?") == "The gardener."
    assert seen == WHOLE


async def test_a_cancelled_call_cancels_the_run(tmp_path: Path) -> None:
    runs = FakeRuns(hold=True)
    async with _served(tmp_path, runs) as address:
        asking = asyncio.ensure_future(RLM(server=address).acompletion(query="Who?"))
        await runs.watching.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert [view.state for view in runs.views.values()] == [RunState.CANCELLED]


async def test_a_run_that_somebody_else_stops_is_told_apart_from_a_failure(tmp_path: Path) -> None:
    runs = FakeRuns(hold=True)
    async with _served(tmp_path, runs) as address:
        asking = asyncio.ensure_future(RLM(server=address).acompletion(query="Who?"))
        await runs.watching.wait()
        await runs.end("run_1", state=RunState.INTERRUPTED)
        with pytest.raises(ServiceFailed) as caught:
            await asking
        assert caught.value.kind is ServiceFailure.RUN_STOPPED


async def test_a_sandbox_with_files_in_its_block(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes(result=OK)
    async with _served(tmp_path, sandboxes=sandboxes) as address:
        async with Sandbox({"a": 1}, server=address, cell_timeout_s=7.0) as sandbox:
            assert await sandbox.run("1") == OK
            assert await sandbox.run("2", time_limit_s=3.0) == OK
            await sandbox.write_file("in/data", b"\x00x")
            assert await sandbox.read_file("in/data") == b"\x00x"
            assert len(sandboxes.alive) == 1
        assert sandboxes.alive == set()
        with pytest.raises(SandboxLost):
            await sandbox.run("3")
    assert sandboxes.codes == [("1", 7.0), ("2", 3.0)]


async def test_a_sandbox_in_a_program_without_a_loop_is_gone_after_an_error_too(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes(result=OK)

    def work(address: str) -> None:
        with Sandbox(server=address) as sandbox:
            assert sandbox.run_sync("1") == OK
            raise KeyError("mine")

    async with _served(tmp_path, sandboxes=sandboxes) as address:
        with pytest.raises(KeyError, match="mine"):
            await asyncio.to_thread(work, address)
        assert sandboxes.alive == set()


def test_the_server_is_the_one_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLM_SERVER", raising=False)
    with pytest.raises(InvalidInput, match="RLM_SERVER"):
        RLM()
    monkeypatch.setenv("RLM_SERVER", "nonsense")
    with pytest.raises(InvalidInput, match="nonsense"):
        RLM()
    monkeypatch.setenv("RLM_SERVER", f"unix:{tmp_path}/s")
    RLM()
    with pytest.raises(InvalidInput, match="memory_mib"):
        RLM(memory_mib=512)
    with pytest.raises(InvalidInput, match="query"):
        RLM().completion()
