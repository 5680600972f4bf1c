"""Recordings of one server become runs of another, and nothing else does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.recorded import export
from orchestrator.cli.services import Services
from orchestrator.client.calls import Client
from orchestrator.errors import InvalidInput, QuotaExceeded, RunNotReplayable
from orchestrator.protocol.rlm.v1 import server_pb2
from orchestrator.server.listening import ListenSettings, listening
from orchestrator.server.tokens import Entry, Tokens, hash_of
from orchestrator.views import RunState
from orchestrator.wire.addresses import TcpAddress, UnixAddress
from tests.unit.hosting_world import ALICE, House, house
from tests.unit.rlm_world import code


@asynccontextmanager
async def served(folder: Path, entry: Entry | None = None) -> AsyncIterator[tuple[House, Client]]:
    await asyncio.to_thread(folder.mkdir)
    async with house(folder, lambda _: code("print('on')", "FINAL('x')")) as desk:
        tokens = Tokens([entry]) if entry is not None else None
        address = TcpAddress("127.0.0.1", 0) if entry is not None else UnixAddress(folder / "s")
        settings = ListenSettings(addresses=(address,), tokens=tokens, stop_grace_s=0.0)
        info = server_pb2.GetServerInfoResponse()
        async with (
            listening(desk.runs, desk.sandboxes, info, settings) as server,
            Client(str(server.addresses[0]), "right" if entry is not None else None) as client,
        ):
            yield desk, client


async def test_a_run_goes_from_one_server_to_another_whole(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with served(tmp_path / "one") as (desk, client):
        run = await desk.ask("Who?", labels={"a": "b"})
        records = [record async for record in client.watch(run.run_id)]
        services = Services(environ={}, dotenv=None)
        await asyncio.to_thread(export, run.run_id, services, f"unix:{tmp_path}/one/s", file)
    async with served(tmp_path / "other", Entry("bob", hash_of("right"), max_cost_usd=0.5)) as (desk, client):
        taken = await client.import_run(file)
        assert (taken.run_id, taken.state, taken.principal) == (run.run_id, RunState.SUCCEEDED, "bob")
        assert (taken.query, taken.answer, taken.spent) == ("Who?", "x", run.spent)
        assert [record async for record in client.watch(run.run_id)] == records
        assert (await client.list()).items == (taken,)
        assert desk.store.total_of("bob").cost_usd == 0
        with pytest.raises(InvalidInput, match="already"):
            await client.import_run(file)
        assert [path.name for path in (tmp_path / "other" / "store.db.contexts").iterdir()] == []


def _first(change: Callable[[dict[str, Any]], None]) -> Callable[[list[str]], None]:
    def apply(lines: list[str]) -> None:
        record = json.loads(lines[1])
        change(record)
        lines[1] = json.dumps(record)

    return apply


BENT: dict[str, Callable[[list[str]], object]] = {
    "no header": lambda lines: lines.pop(0),
    "no start": lambda lines: lines.pop(1),
    "another name": _first(lambda record: record["event"].update(run_id="../../x")),
    "a time beyond all times": _first(lambda record: record.update(at=1e300)),
    "a number beyond the store's": lambda lines: lines.append(
        lines.pop().replace('"seq":', '"seq":99999999999999999999', 1)
    ),
    "a query of many megabytes": _first(lambda record: record["event"].update(query="x" * (5 << 20))),
    "no JSON": lambda lines: lines.insert(2, "{"),
    "nothing": lambda lines: lines.clear(),
}


@pytest.mark.parametrize("bend", BENT.values(), ids=BENT)
async def test_what_is_no_recording_is_refused_and_leaves_nothing(
    tmp_path: Path, bend: Callable[[list[str]], object]
) -> None:
    file = tmp_path / "run.jsonl"
    async with served(tmp_path / "one") as (desk, client):
        run = await desk.ask("Who?")
        desk.store.export_jsonl(run.run_id, file)
        await desk.runs.delete(run.run_id, principal=ALICE)
        lines = file.read_text().splitlines()
        bend(lines)
        file.write_text("\n".join(lines) + "\n")
        with pytest.raises(RunNotReplayable) as caught:
            await client.import_run(file)
        assert str(tmp_path) not in str(caught.value)
        assert (await client.list()).items == ()
        assert [path.name for path in (tmp_path / "one" / "store.db.contexts").iterdir()] == []


async def test_a_quota_of_what_is_stored_holds_for_recordings(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with served(tmp_path / "one", Entry("alice", hash_of("right"), max_stored_bytes=1000)) as (desk, client):
        run = await desk.ask("Who?")
        desk.store.export_jsonl(run.run_id, file)
        await desk.runs.delete(run.run_id, principal=ALICE)
        with pytest.raises(QuotaExceeded, match="max_stored_bytes"):
            await client.import_run(file)
        assert (await client.list()).items == ()
