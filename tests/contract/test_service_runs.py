"""The public services, over a real socket, as our client asks them: the desks behind them are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from orchestrator import errors as er
from orchestrator.client.calls import Client
from orchestrator.client.remote import Remote
from orchestrator.client.sandboxes import Sandboxes, open_sandbox
from orchestrator.events import Record
from orchestrator.hosting.orders import Uploaded
from orchestrator.protocol.rlm.v1 import run_pb2, run_pb2_grpc
from orchestrator.server.listening import ListenSettings
from orchestrator.server.tokens import Entry, Tokens, hash_of
from orchestrator.values import Attachment, CellResult, CellStatus, ContextKind, Ending, OutputChunk, OutputStream
from orchestrator.views import Missed, RunProblem, RunState
from orchestrator.wire.addresses import TcpAddress, UnixAddress, parse_address
from tests.unit.fake_desks import WHOLE, FakeRuns, FakeSandboxes, fake_server, notice


@asynccontextmanager
async def served(
    folder: Path, runs: FakeRuns | None = None, sandboxes: FakeSandboxes | None = None, **settings: Any
) -> AsyncIterator[Client]:
    async with (
        fake_server(folder, runs, sandboxes, **settings) as server,
        Client(str(server.addresses[0]), retry_s=0.0) as client,
    ):
        yield client


async def _all(records: AsyncIterator[Record]) -> list[Record]:
    return [record async for record in records]


async def test_a_run_is_started_watched_and_found(tmp_path: Path) -> None:
    runs = FakeRuns()
    async with served(tmp_path, runs) as client:
        settings = {"model": "big", "max_depth": 2, "max_cost_usd": 0.5}
        view = await client.start("Who?", {"a": [1]}, settings=settings, labels={"team": "x"})
        assert await _all(client.watch(view.run_id)) == WHOLE
        assert await _all(client.watch(view.run_id, after_seq=5)) == WHOLE[5:]
        assert await client.get(view.run_id) == view == runs.views[view.run_id]
    (order,) = runs.orders
    assert order.context == Attachment(ContextKind.JSON, b'{"a": [1]}')
    assert (order.query, order.labels, order.principal.admin) == ("Who?", {"team": "x"}, True)
    assert order.settings is not None
    assert (order.settings.model, order.settings.max_depth, order.settings.max_cost_usd) == ("big", 2, 0.5)


async def test_the_same_request_id_is_the_same_run(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        first = await client.start("Who?", request_id="r-1")
        assert (await client.start("Who?", request_id="r-1")).run_id == first.run_id
        with pytest.raises(er.RequestConflict):
            await client.start("When?", request_id="r-1")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda request: request.settings.__setattr__("max_depth", 99), "max_depth"),
        (lambda request: request.settings.__setattr__("model_options_json", "[]"), "model_options_json"),
        (lambda request: request.settings.cell_timeout.FromSeconds(-1), "cell_timeout_s"),
        (lambda request: request.keep_session.FromSeconds(-1), "keep_session"),
        (lambda request: request.__setattr__("request_id", "with space"), "request_id"),
        (lambda request: request.__setattr__("request_id", "x" * 129), "request_id"),
        (lambda request: request.labels.update({str(n): "" for n in range(33)}), "labels"),
        (lambda request: request.labels.update({"a": "x" * 257}), "labels"),
    ],
)
async def test_what_breaks_a_rule_is_named(
    tmp_path: Path, change: Callable[[run_pb2.StartRunRequest], None], name: str
) -> None:
    async with served(tmp_path) as client:
        request = run_pb2.StartRunRequest(query="Who?")
        change(request)
        stub: Any = run_pb2_grpc.RunServiceStub(client.connection.channel)
        with pytest.raises(er.InvalidInput) as caught:
            await client.connection.unary(stub.StartRun, request, 5.0, again=False)
        assert caught.value.name == name


async def test_a_slow_watcher_gets_the_missed_ones_with_another_watch(tmp_path: Path) -> None:
    runs = FakeRuns(missed=Missed(3, 6))
    async with served(tmp_path, runs) as client:
        view = await client.start("Who?")
        stub: Any = run_pb2_grpc.RunServiceStub(client.connection.channel)
        first = [each async for each in stub.WatchRun(run_pb2.WatchRunRequest(run_id=view.run_id))]
        assert (first[2].missed.first_seq, first[2].missed.last_seq, first[3].record.seq) == (3, 6, 7)
        runs.missed = Missed(3, 6)
        assert await _all(client.watch(view.run_id)) == WHOLE


async def test_a_watch_goes_on_after_a_restart_and_loses_nothing(tmp_path: Path) -> None:
    runs = FakeRuns(hold=True)
    async with Client(f"unix:{tmp_path}/s", retry_s=30.0) as client:
        found: list[Record] = []
        async with fake_server(tmp_path, runs):
            view = await client.start("Who?")
            watch = client.watch(view.run_id)
            found += [await anext(watch) for _ in WHOLE]
            rest = asyncio.ensure_future(_all(watch))
        assert runs.watchers == 0
        runs.script += [notice(WHOLE[-1].seq + 1)]
        async with fake_server(tmp_path, runs):
            await runs.end(view.run_id, state=RunState.SUCCEEDED)
            assert found + await rest == runs.script


async def test_a_watcher_that_leaves_leaves_nothing(tmp_path: Path) -> None:
    runs = FakeRuns(hold=True)
    async with served(tmp_path, runs) as client:
        watch = client.watch((await client.start("Who?")).run_id)
        await anext(watch)
        await watch.aclose()  # type: ignore[attr-defined]
        await runs.watched_to_end.wait()
        assert runs.watchers == 0


async def test_pages_follow_one_another(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        for number in range(60):
            await client.start(f"Question {number}")
        first = await client.list(page_size=40)
        second = await client.list(page_size=40, page_token=first.next_token)
        assert [view.query for view in (*first.items, *second.items)] == [f"Question {n}" for n in reversed(range(60))]
        assert second.next_token == ""
        assert (await client.list(states=frozenset({RunState.RUNNING}))).items == ()
        with pytest.raises(er.InvalidInput, match="page_token"):
            await client.list(page_token="forged")
        with pytest.raises(er.InvalidInput, match="page_size"):
            await client.list(page_size=1001)


@pytest.mark.parametrize("value", ["x" * 9_000_000, b"\xff\x00" * 100, "ä" * 5_000_000])
async def test_large_contexts_and_bytes_are_uploaded_in_chunks(tmp_path: Path, value: str | bytes) -> None:
    runs = FakeRuns()
    async with served(tmp_path, runs) as client:
        await client.start("Who?", value)
    (order,) = runs.orders
    assert isinstance(order.context, Uploaded)
    assert runs.blobs[order.context.context_id] == (value.encode() if isinstance(value, str) else value)


async def test_a_file_is_uploaded_without_being_held(tmp_path: Path) -> None:
    runs = FakeRuns()
    path = tmp_path / "big.txt"
    path.write_bytes("ä".encode() * 6_000_000)
    async with served(tmp_path, runs) as client:
        view = await client.upload(path)
        assert view.info.kind is ContextKind.TEXT
        path.write_bytes(b"\xff")
        assert (await client.upload(path)).info.kind is ContextKind.BYTES
        await client.delete_context(view.context_id)
        with pytest.raises(er.NotFound):
            await client.delete_context(view.context_id)
        with pytest.raises(er.InvalidInput, match="cannot be read"):
            await client.upload(tmp_path / "none")


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([], "header"),
        ([run_pb2.UploadContextRequest(chunk=b"x")], "header"),
        ([run_pb2.UploadContextRequest(header=run_pb2.ContextHeader(kind=1, sha256=b"short"))], "header.sha256"),  # type: ignore[arg-type]
        ([run_pb2.UploadContextRequest(header=run_pb2.ContextHeader(sha256=b"x" * 32))], "header.kind"),
        (
            [
                run_pb2.UploadContextRequest(header=run_pb2.ContextHeader(kind=1, sha256=b"x" * 32)),  # type: ignore[arg-type]
                run_pb2.UploadContextRequest(chunk=b"x" * (1024 * 1024 + 1)),
            ],
            "chunk",
        ),
        (
            [
                run_pb2.UploadContextRequest(header=run_pb2.ContextHeader(kind=1, size_bytes=1, sha256=b"x" * 32)),  # type: ignore[arg-type]
                run_pb2.UploadContextRequest(chunk=b"y"),
            ],
            "header",
        ),
    ],
)
async def test_a_malformed_upload_is_refused(
    tmp_path: Path, parts: list[run_pb2.UploadContextRequest], name: str
) -> None:
    async with served(tmp_path) as client:
        stub: Any = run_pb2_grpc.RunServiceStub(client.connection.channel)
        with pytest.raises(er.InvalidInput) as caught:
            await client.connection.unary(
                lambda _, **options: stub.UploadContext(parts, **options), None, 5.0, again=False
            )
        assert caught.value.name == name


async def test_an_upload_that_falls_silent_is_ended(tmp_path: Path) -> None:
    async with served(tmp_path, upload_idle_s=0.02) as client:
        stub: Any = run_pb2_grpc.RunServiceStub(client.connection.channel)
        call = stub.UploadContext()
        await call.write(run_pb2.UploadContextRequest(header=run_pb2.ContextHeader(kind=1, sha256=b"x" * 32)))  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no part of the upload" in (caught.value.details() or "")


async def test_remote_ask_gives_a_result_and_records(tmp_path: Path) -> None:
    records: list[Record] = []
    async with served(tmp_path) as client:
        result = await Remote(client, {"model": "big"}).ask("Who?", sinks=[records.append])
    assert (result.answer, result.ending, result.seconds) == ("The gardener.", Ending.FINAL, 4.2)
    assert records == WHOLE


async def test_a_failed_run_raises_what_the_library_raises(tmp_path: Path) -> None:
    runs = FakeRuns(hold=True)
    error = er.BudgetExceeded("max_calls", 5, 5, 1)
    async with served(tmp_path, runs) as client:
        asking = asyncio.ensure_future(Remote(client, {}).ask("Who?"))
        await runs.watching.wait()
        metadata = {"limit": "max_calls", "allowed": "5", "used": "5", "wanted": "1", "remedy": "Raise max_calls."}
        await runs.end("run_1", state=RunState.FAILED, problem=RunProblem("BUDGET_EXCEEDED", str(error), metadata))
        with pytest.raises(er.BudgetExceeded) as caught:
            await asking
    assert (str(caught.value), caught.value.allowed) == (str(error), 5.0)


@pytest.mark.parametrize("slow", [False, True], ids=["watching", "starting"])
async def test_whoever_stops_asking_cancels_the_run(tmp_path: Path, slow: bool) -> None:
    runs = FakeRuns(hold=True, slow_start=asyncio.Event() if slow else None)
    async with served(tmp_path, runs) as client:
        asking = asyncio.ensure_future(Remote(client, {}).ask("Who?"))
        await (runs.starting if slow else runs.watching).wait()
        asking.cancel()
        if runs.slow_start is not None:
            asyncio.get_running_loop().call_soon(runs.slow_start.set)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert runs.views["run_1"].state is RunState.CANCELLED


async def test_a_sandbox_of_a_server(tmp_path: Path) -> None:
    chunk = OutputChunk(OutputStream.STDOUT, 0, "hi")
    sandboxes = FakeSandboxes(output=[chunk], result=CellResult(CellStatus.OK))
    printed: list[OutputChunk] = []
    async with (
        served(tmp_path, sandboxes=sandboxes) as client,
        open_sandbox(client, {"a": 1}, idle_timeout_s=5.0) as sandbox,
    ):
        assert await sandbox.run("print('hi')", printed.append, time_limit_s=1.5) == CellResult(CellStatus.OK)
        await sandbox.write_file("a/b", b"x" * 20_000_000)
        assert await sandbox.read_file("a/b") == b"x" * 20_000_000
        assert [each.sandbox_id for each in (await Sandboxes(client).list()).items] == [sandbox.name]
        assert (await Sandboxes(client).get(sandbox.name)).sandbox_id == sandbox.name
    assert printed == [chunk]
    assert sandboxes.codes == [("print('hi')", 1.5)]
    assert sandboxes.alive == set()
    assert (sandboxes.orders[0].idle_timeout_s, sandboxes.orders[0].model) == (5.0, None)


async def test_a_cancelled_cell_is_closed_and_an_interrupted_one_has_its_result(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes(
        hold=True, result=CellResult(CellStatus.INTERRUPTED), output=[OutputChunk(OutputStream.STDOUT, 0, "up")]
    )
    async with served(tmp_path, sandboxes=sandboxes) as client, open_sandbox(client) as sandbox:
        up = asyncio.Event()
        running = asyncio.ensure_future(sandbox.run("1", lambda _: up.set()))
        await up.wait()
        running.cancel()
        await sandboxes.closed.wait()
        again = asyncio.ensure_future(sandbox.run("1"))
        await sandbox.interrupt()
        assert (await again).status is CellStatus.INTERRUPTED


async def test_a_call_s_deadline_ends_its_handler(tmp_path: Path) -> None:
    runs = FakeRuns(slow_start=asyncio.Event())
    async with fake_server(tmp_path, runs) as server:
        async with Client(str(server.addresses[0]), timeout_s=0.05, retry_s=0.0) as client:
            with pytest.raises(er.ServiceFailed) as caught:
                await client.start("Who?")
            assert caught.value.kind is er.ServiceFailure.TIMED_OUT
        await runs.gave_up.wait()
        assert runs.orders == []


async def test_health_and_reflection(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server, grpc.aio.insecure_channel(str(server.addresses[0])) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="rlm.v1.RunService"))
        serving = health_pb2.HealthCheckResponse.SERVING
        assert (await watch.read()).status == serving
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == serving
        mirror: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for response in mirror.ServerReflectionInfo(iter([asked])):
            names = {each.name for each in response.list_services_response.service}
        assert {"rlm.v1.RunService", "rlm.v1.SandboxService", "rlm.v1.ServerService", "grpc.health.v1.Health"} <= names
        await server.stop_serving()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_tokens_decide_who_may_call(tmp_path: Path) -> None:
    tokens = Tokens([Entry("alice", hash_of("a")), Entry("bob", hash_of("b")), Entry("root", hash_of("r"), admin=True)])
    runs = FakeRuns()
    addresses = (UnixAddress(tmp_path / "s"), TcpAddress("127.0.0.1", 0))
    async with fake_server(tmp_path, runs, addresses=addresses, tokens=tokens) as server:
        tcp = str(server.addresses[1])
        async with Client(tcp, "a") as alice, Client(tcp, "b") as bob, Client(tcp, "r") as admin:
            view = await alice.start("Who?")
            assert (view.principal, (await admin.get(view.run_id)).principal) == ("alice", "alice")
            for call in (bob.get, bob.cancel, bob.delete):
                with pytest.raises(er.NotFound):
                    await call(view.run_id)
            with pytest.raises(er.NotFound):
                await _all(bob.watch(view.run_id))
            assert (await bob.list()).items == ()
        async with Client(str(server.addresses[0])) as local:
            assert (await local.get(view.run_id)).run_id == view.run_id
            assert (await local.info()).version == "1.2.3"
        for token in (None, "", "c", "x" * 1000):
            async with Client(tcp, token) as stranger:
                with pytest.raises(er.ServiceFailed) as caught:
                    await stranger.start("Who?")
                assert caught.value.kind is er.ServiceFailure.UNAUTHENTICATED


async def test_an_error_of_ours_says_nothing_of_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = FakeRuns(fault=RuntimeError("/secret/path"))
    async with served(tmp_path, runs) as client:
        with pytest.raises(er.ServiceFailed) as caught:
            await client.start("Who?")
    assert caught.value.kind is er.ServiceFailure.INTERNAL
    assert "secret" not in str(caught.value)
    identifier = str(caught.value).partition("id ")[2].partition(")")[0]
    assert any(identifier in record.message for record in caplog.records)
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize("address", ["0.0.0.0:7443", "[::]:7443", "example.org:7443", "192.168.1.1:0"])
def test_nothing_is_served_in_the_clear_beyond_this_machine(address: str) -> None:
    with pytest.raises(er.InvalidInput, match="without TLS"):
        ListenSettings(addresses=(parse_address(address),))


async def test_a_socket_is_its_owner_s_and_is_not_taken_from_a_living_server(tmp_path: Path) -> None:
    async with fake_server(tmp_path):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        with pytest.raises(er.InvalidInput, match="another server listens"):
            async with fake_server(tmp_path):
                pass
    assert not (tmp_path / "s").exists()


async def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    addresses = (TcpAddress("127.0.0.1", 0),)
    async with fake_server(tmp_path, addresses=addresses) as server:
        with pytest.raises(er.InvalidInput, match="cannot be listened on"):
            async with fake_server(tmp_path, addresses=server.addresses):
                pass


async def test_what_is_not_there_is_told_at_once_without_retries(tmp_path: Path) -> None:
    async with Client(f"unix:{tmp_path}/none", retry_s=0.0) as client:
        with pytest.raises(er.ServiceFailed) as caught:
            await client.get("run_1")
    assert caught.value.kind is er.ServiceFailure.UNREACHABLE
