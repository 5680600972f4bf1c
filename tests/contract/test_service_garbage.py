"""What comes to a public port that nobody meant for it: clear statuses, no crash, nothing left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.client.calls import Client
from orchestrator.errors import ServiceFailed
from orchestrator.protocol.rlm.v1 import run_pb2, run_pb2_grpc
from orchestrator.server.health import main as health_check
from orchestrator.server.listening import Listening
from orchestrator.server.tokens import Entry, Tokens, hash_of
from orchestrator.views import RunState
from orchestrator.wire.addresses import TcpAddress, UnixAddress
from orchestrator.wire.caps import MAX_REQUEST_BYTES
from tests.unit.fake_desks import FakeRuns, fake_server
from tests.unit.hosting_world import until

LOOPBACK = (TcpAddress("127.0.0.1", 0),)
RUNS = "/rlm.v1.RunService/"


@pytest.fixture
def runs() -> FakeRuns:
    return FakeRuns(hold=True)


@pytest.fixture
async def server(tmp_path: Path, runs: FakeRuns) -> AsyncIterator[Listening]:
    """It must answer a proper call after whatever came, and have nothing under way then."""
    tokens = Tokens([Entry("alice", hash_of("right"))])
    async with fake_server(tmp_path, runs, addresses=LOOPBACK, tokens=tokens, max_calls=64) as server:
        yield server
        async with Client(str(server.addresses[0]), "right") as client:
            assert (await client.info()).version == "1.2.3"
    assert server.guard.under_way == 0
    assert runs.watchers == 0


def _channel(server: Listening, **options: int) -> grpc.aio.Channel:
    given = [("grpc.max_send_message_length", -1), *((f"grpc.{name}", value) for name, value in options.items())]
    return grpc.aio.insecure_channel(str(server.addresses[0]), given)


def _raw(data: Any) -> Any:
    return data


TOKEN = (("authorization", "Bearer right"),)
BOB = (("authorization", "Bearer other"),)
OPEN_TO_ALL = 16  # of 64 calls at a time


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


@pytest.mark.parametrize("seed", range(5))
async def test_random_bytes_close_their_connection_only(server: Listening, seed: int) -> None:
    (address,) = server.addresses
    assert isinstance(address, TcpAddress)
    rng = random.Random(seed)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if seed % 2 else b""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(preface + rng.randbytes(20_000))
    try:
        await writer.drain()
        writer.write_eof()
        while await reader.read(65_536):
            pass
    except OSError:
        pass  # it hung up before it had heard all
    writer.close()


@pytest.mark.parametrize("method", ["StartRun", "GetRun", "ListRuns", "CancelRun"])
async def test_a_message_that_is_none_is_refused(server: Listening, method: str) -> None:
    async with _channel(server) as channel:
        call = channel.unary_unary(RUNS + method, request_serializer=_raw, response_deserializer=_raw)
        assert await _code(call(b"\xff" * 100, metadata=TOKEN)) is grpc.StatusCode.INVALID_ARGUMENT
        assert await _code(call(b"\xff" * 100)) is grpc.StatusCode.UNAUTHENTICATED
        upload = channel.stream_unary(RUNS + "UploadContext", request_serializer=_raw, response_deserializer=_raw)
        assert await _code(upload(iter([b"\xff" * 100]), metadata=TOKEN)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_cap_is_refused_unread(server: Listening) -> None:
    async with _channel(server) as channel:
        call = channel.unary_unary(RUNS + "StartRun", request_serializer=_raw, response_deserializer=_raw)
        code = await _code(call(b"\x12" + bytes(MAX_REQUEST_BYTES + 1), metadata=TOKEN))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_frame_that_promises_a_gigabyte_is_refused_at_its_header(server: Listening) -> None:
    (address,) = server.addresses
    assert isinstance(address, TcpAddress)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    # RFC 9113 and RFC 7541: preface, settings, a request's headers as literals, and a gRPC message of 2^30 bytes.
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": RUNS + "StartRun",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        "authorization": "Bearer right",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    data = b"\x00" + (1 << 30).to_bytes(4, "big") + b"x"

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    writer.write(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block) + frame(0, 0, 1, data)
    )
    heard = b""
    while b"grpc-status" not in heard and (more := await reader.read(65_536)):
        heard += more
    # Its status follows as a literal, the length first: "8" is RESOURCE_EXHAUSTED.
    assert heard.partition(b"grpc-status")[2][:2] == b"\x018"
    writer.close()


async def test_calls_that_do_not_exist_are_told_so(server: Listening) -> None:
    async with _channel(server) as channel:
        for path in (RUNS + "Nothing", "/no.such.Service/Call", "/"):
            call = channel.unary_unary(path, request_serializer=_raw, response_deserializer=_raw)
            assert await _code(call(b"", metadata=TOKEN)) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "right"),),
        (("authorization", "Basic right"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Bearer right"), ("authorization", "Bearer wrong")),
        (("authorization-bin", b"Bearer right"),),
    ],
)
async def test_a_call_without_its_token_is_unauthenticated(server: Listening, metadata: Any) -> None:
    async with _channel(server) as channel:
        stub: Any = run_pb2_grpc.RunServiceStub(channel)
        code = await _code(stub.StartRun(run_pb2.StartRunRequest(query="Who?"), metadata=metadata))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        watch = stub.WatchRun(run_pb2.WatchRunRequest(run_id="run_1"), metadata=metadata)
        assert await _code(watch.read()) is grpc.StatusCode.UNAUTHENTICATED


async def test_metadata_over_the_cap_is_refused(server: Listening) -> None:
    async with _channel(server) as channel:
        stub: Any = run_pb2_grpc.RunServiceStub(channel)
        code = await _code(stub.ListRuns(run_pb2.ListRunsRequest(), metadata=(*TOKEN, ("x", "y" * 1_000_000))))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_calls_beyond_the_most_are_refused_and_the_others_go_on(server: Listening, runs: FakeRuns) -> None:
    async with _channel(server, use_local_subchannel_pool=1) as channel:
        stub: Any = run_pb2_grpc.RunServiceStub(channel)
        run = (await stub.StartRun(run_pb2.StartRunRequest(query="Who?"), metadata=TOKEN)).run
        request = run_pb2.WatchRunRequest(run_id=run.run_id)
        watches = [stub.WatchRun(request, metadata=TOKEN) for _ in range(200)]
        codes = await asyncio.gather(*(_first(watch) for watch in watches))
        assert codes.count(None) == 64
        assert set(codes) == {None, grpc.StatusCode.RESOURCE_EXHAUSTED}
        await runs.end(run.run_id, state=RunState.CANCELLED)
        ends = [watch for watch, code in zip(watches, codes, strict=True) if code is None]
        assert [await watch.code() async for watch in _read_out(ends)] == [grpc.StatusCode.OK] * 64


async def _first(watch: Any) -> grpc.StatusCode | None:
    try:
        await watch.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


async def _read_out(watches: list[Any]) -> AsyncIterator[Any]:
    for watch in watches:
        while await watch.read() is not grpc.aio.EOF:
            pass
        yield watch


async def test_thousands_of_streams_that_are_dropped_leave_nothing(server: Listening, runs: FakeRuns) -> None:
    async with _channel(server) as channel:
        stub: Any = run_pb2_grpc.RunServiceStub(channel)
        run = (await stub.StartRun(run_pb2.StartRunRequest(query="Who?"), metadata=TOKEN)).run
        for _ in range(20):
            watches = [stub.WatchRun(run_pb2.WatchRunRequest(run_id=run.run_id), metadata=TOKEN) for _ in range(100)]
            await _first(watches[0])
            for watch in watches:
                watch.cancel()
    # The fixture asks for what is left, after the server's end.


async def test_half_open_uploads_end_with_their_connection(server: Listening) -> None:
    async with _channel(server) as channel:
        stub: Any = run_pb2_grpc.RunServiceStub(channel)
        for _ in range(20):
            call = stub.UploadContext(metadata=TOKEN)
            header = run_pb2.ContextHeader(kind=1, size_bytes=10, sha256=bytes(32))  # type: ignore[arg-type]
            await call.write(run_pb2.UploadContextRequest(header=header))


async def _never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def _half_open(channel: grpc.aio.Channel, method: str, metadata: Any) -> Any:
    """A call whose headers came, and whose request never does."""
    call = channel.stream_unary(method, request_serializer=_raw, response_deserializer=_raw)
    return call(_never(), metadata=metadata)


async def test_a_call_without_a_token_is_sent_away_at_its_headers(server: Listening) -> None:
    async with _channel(server, use_local_subchannel_pool=1) as channel:
        calls = [_half_open(channel, RUNS + "GetRun", ()) for _ in range(200)]
        codes = await asyncio.gather(*(call.code() for call in calls))
        # Over the most at a time, gRPC refuses by itself; either way none of them stays.
        assert set(codes) <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        async with Client(str(server.addresses[0]), "right", retry_s=0) as client:
            assert (await client.info(again=False)).version == "1.2.3"


async def test_a_request_that_does_not_come_ends_its_call(tmp_path: Path) -> None:
    tokens = Tokens([Entry("alice", hash_of("right"))])
    settings: dict[str, Any] = {"addresses": LOOPBACK, "tokens": tokens, "first_message_s": 0.05}
    async with fake_server(tmp_path, **settings) as server, _channel(server) as channel:
        for method in ("GetRun", "WatchRun"):
            call = _half_open(channel, RUNS + method, TOKEN)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "did not come" in await call.details()


async def test_health_watches_of_nobody_leave_room_for_all_others(tmp_path: Path) -> None:
    tokens, addresses = Tokens([Entry("alice", hash_of("right"))]), (*LOOPBACK, UnixAddress(tmp_path / "s"))
    async with (
        fake_server(tmp_path, addresses=addresses, tokens=tokens, max_calls=64) as server,
        _channel(server, use_local_subchannel_pool=1) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(200)]
        codes = await asyncio.gather(*(_first(watch) for watch in watches))
        assert codes.count(None) == OPEN_TO_ALL
        assert set(codes) == {None, grpc.StatusCode.RESOURCE_EXHAUSTED}
        async with Client(str(server.addresses[0]), "right", retry_s=0) as client:
            assert (await client.info(again=False)).version == "1.2.3"
        assert await asyncio.to_thread(health_check, [f"unix:{tmp_path}/s"]) == 0
        for watch in watches:
            watch.cancel()


async def test_no_token_takes_the_places_of_others_or_of_the_admin(tmp_path: Path) -> None:
    tokens = Tokens([Entry("alice", hash_of("right")), Entry("bob", hash_of("other"))])
    runs = FakeRuns(hold=True)
    addresses = (*LOOPBACK, UnixAddress(tmp_path / "s"))
    settings: dict[str, Any] = {"addresses": addresses, "tokens": tokens, "max_calls": 12, "max_calls_each": 8}
    async with fake_server(tmp_path, runs, **settings) as server:
        port, socket = map(str, server.addresses)
        async with _channel(server, use_local_subchannel_pool=1) as channel, Client(port, "other", retry_s=0) as bob:
            stub: Any = run_pb2_grpc.RunServiceStub(channel)
            run = (await stub.StartRun(run_pb2.StartRunRequest(query="Who?"), metadata=TOKEN)).run
            watch = run_pb2.WatchRunRequest(run_id=run.run_id)
            watches = [stub.WatchRun(watch, metadata=TOKEN) for _ in range(9)]
            codes = await asyncio.gather(*(_first(each) for each in watches))
            assert codes.count(None) == 8
            assert (await bob.info(again=False)).version == "1.2.3"
            more = [_half_open(channel, RUNS + "GetRun", BOB) for _ in range(20)]
            await until(lambda: server.guard.under_way >= 12)
            with pytest.raises(ServiceFailed):
                await bob.info(again=False)
            async with Client(socket, retry_s=0) as admin:
                assert (await admin.info(again=False)).version == "1.2.3"
            for call in (*watches, *more):
                call.cancel()
        await runs.end(run.run_id, state=RunState.CANCELLED)
