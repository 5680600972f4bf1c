"""Where bytes of a guest, a client or a host first become values: any end in a value, or in the exception that says so.

Each function here is what `tests/fuzz` drives by coverage, for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import RunSettings
from orchestrator.errors import InvalidInput, ServiceFailed
from orchestrator.hosting.premises import check_order, converted
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.protocol.rlm.v1 import run_pb2, sandbox_pb2
from orchestrator.sandbox import grpc_calls, http2, http2_frames, http2_headers, wire, wire_shape
from orchestrator.server import calls, orders
from orchestrator.server.tokens import Tokens
from tests.security.test_readers_are_total import _mutated as mutated
from tests.security.test_readers_are_total import edits
from tests.unit.guest_modules import agent_http2, guest_grpc, guest_hpack, worker_calls, worker_http2
from tests.unit.message_pairs import agree

strict = settings(max_examples=300, deadline=None)


# --- from a guest --------------------------------------------------------------------------------------------------

_FILLING = b"\x7a\x80\x20" + bytes(
    4096
)  # field 15 with 4 KiB: unknown, and large enough that the outline is read first


def read_guest(data: bytes) -> None:
    """Bytes of the stream, and bytes of a question: small ones, and ones whose outline is looked at first."""
    for each in (data, data + _FILLING):
        try:
            wire.read_message(each)
        except wire.ProtocolViolation:
            pass
        try:
            batch = wire.read_questions(each)
        except wire.BadQuestion:
            continue
        assert 1 <= len(batch.questions) <= wire.MAX_QUESTIONS
        assert batch.max_concurrent >= 1


def outline(data: bytes, most: int = 50) -> None:
    """What the outline takes, protobuf may refuse; it never has more parts than were counted."""
    try:
        count = len(list(wire_shape.fields(data, most)))
    except (wire_shape.Malformed, wire_shape.TooManyFields):
        return
    assert count <= most
    assert count <= len(data)


_GUESTS = st.sampled_from(
    [
        pb.AttachRequest(hello=pb.Hello(protocol_version=2, python_version="3.11")),
        pb.AttachRequest(output=pb.Output(cell=1, stream=pb.OUTPUT_STREAM_STDOUT, offset=7, data=b"text")),
        pb.AttachRequest(cell_ended=pb.CellEnded(cell=1, status=pb.CELL_STATUS_OK, variables=[pb.Variable(name="x")])),
        pb.AskRequest(questions=[pb.Question(prompt="a"), pb.Question(prompt="b")], max_concurrent=4),
    ]
).map(lambda message: message.SerializeToString())


@given(st.binary(max_size=400))
@strict
def test_a_guests_message_of_any_bytes(data: bytes) -> None:
    read_guest(data)
    outline(data)


@given(_GUESTS, edits)
@strict
def test_a_guests_message_that_someone_changed(data: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    read_guest(mutated(data, edits))
    outline(mutated(data, edits))


class _Ignored:
    def data(self, data: memoryview, last: bool) -> None:
        bytes(data)

    def sent(self) -> None:
        pass

    def lost(self) -> None:
        pass


def read_guests_http2(data: bytes, cut: int = 11) -> None:
    """As the host reads a guest's connection, piece by piece, answering each call at once; what it says is bounded."""
    connection = http2.Connection(8, lambda stream, headers: answered(stream, headers))

    def answered(stream: http2.Stream, headers: list[http2_headers.Header]) -> _Ignored:
        grpc_calls.path_of(headers)
        connection.headers(stream, b"\x88")
        connection.send(stream, bytes(100_000), trailers=b"\x88")
        return _Ignored()

    try:
        for start in range(0, len(data), cut):
            with memoryview(data)[start : start + cut] as piece:
                connection.receive(piece)
            assert len(connection.take()) <= 200_000
    except http2_frames.Http2Error:
        pass
    connection.close()


_CALLS = http2_frames.PREFACE + b"".join(
    len(payload).to_bytes(3) + bytes([kind, flags]) + number.to_bytes(4) + payload
    for kind, flags, number, payload in (
        (4, 0, 0, b"\0\4\0\1\0\0"),
        (8, 0, 0, (70_000).to_bytes(4)),
        (1, 4, 1, guest_grpc.request_headers("/rlm.guest.v1.GuestService/Ask")),
        (0, 9, 1, b"\1\0\0\0\0\3abc\0"),
        (1, 0, 3, b"\x83\x86\x44\x85"),
        (9, 4, 3, b"abcde\x40\x01x\x01y"),
        (6, 0, 0, bytes(8)),
        (3, 0, 3, (8).to_bytes(4)),
    )
)


@given(st.binary(max_size=300), st.integers(1, 64))
@strict
def test_a_guests_connection_of_any_bytes(data: bytes, cut: int) -> None:
    read_guests_http2(http2_frames.PREFACE + data, cut)


@given(edits, st.integers(1, 64))
@strict
def test_a_guests_connection_that_someone_changed(edits: list[tuple[int, int, bytes]], cut: int) -> None:
    read_guests_http2(mutated(_CALLS, edits), cut)


# --- from a client -------------------------------------------------------------------------------------------------


def _settings_of(given: Mapping[str, object]) -> RunSettings:
    return converted(RunSettings, RunSettings(), given)


CALLER = Principal("a")
# Its defaults are all that orders ask of a desk.
_DESK = cast(RunDesk, SimpleNamespace(settings_of=_settings_of))


def _start_run(request: Any) -> None:
    order = orders.run_order(request, _DESK, CALLER, {})
    check_order(order.request_id, order.labels)


def _upload(request: Any) -> None:
    orders.chunk_of(request) if request.WhichOneof("part") == "chunk" else orders.header_of(request)


REQUESTS: dict[type[Message], Callable[[Any], object]] = {
    run_pb2.StartRunRequest: _start_run,
    run_pb2.ListRunsRequest: orders.run_query,
    run_pb2.UploadContextRequest: _upload,
    sandbox_pb2.CreateSandboxRequest: lambda request: orders.sandbox_order(request, CALLER, {}),
    sandbox_pb2.RunCellRequest: orders.time_limit,
}


def read_requests(data: bytes) -> None:
    for kind, read in REQUESTS.items():
        try:
            read(kind.FromString(data))
        except (DecodeError, InvalidInput):
            continue


_STARTS = run_pb2.StartRunRequest(query="q", request_id="a-1", text="some context", labels={"a": "b"}, session_id="s")
_STARTS.settings.model_options_json = '{"a": [1]}'
_STARTS.settings.runtime = "runsc"
_STARTS.settings.cell_timeout.seconds = 5
_STARTS.settings.limits.max_cost_usd = 1.5
_STARTS.keep_session.seconds = 60
_CLIENTS = st.sampled_from(
    [
        _STARTS.SerializeToString(),
        sandbox_pb2.CreateSandboxRequest(request_id="b", json="[1]", labels={"c": "d"}).SerializeToString(),
        run_pb2.ListRunsRequest(page_size=5, page_token="x", states=[run_pb2.RUN_STATE_RUNNING]).SerializeToString(),
    ]
)


@given(st.binary(max_size=300))
@strict
def test_a_clients_request_of_any_bytes(data: bytes) -> None:
    read_requests(data)


@given(_CLIENTS, edits)
@strict
def test_a_clients_request_that_someone_changed(data: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    read_requests(mutated(data, edits))


class _Context:
    """A call's context, as far as who calls is read of it."""

    def __init__(self, metadata: list[tuple[str, str | bytes]], peer: str) -> None:
        self._metadata, self._peer = metadata, peer

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return self._metadata

    def peer(self) -> str:
        return self._peer


def read_metadata(metadata: list[tuple[str, str | bytes]], peer: str = "ipv4:127.0.0.1:1") -> None:
    """Nobody gets in by a token that nobody was given, and what is passed on of a trace is text."""
    context: Any = _Context(metadata, peer)
    assert all(isinstance(value, str) for value in calls.trace_context(context).values())
    guard = calls.Guard(Tokens(()))
    with pytest.raises(ServiceFailed):
        guard.principal_of("/rlm.v1.RunService/StartRun", metadata, local=peer.startswith("unix:"))


_VALUES = st.text(max_size=80) | st.binary(max_size=80) | st.text(max_size=40).map("Bearer {}".format)
_KEYS = st.sampled_from(["authorization", "traceparent", "tracestate", "x", "a-bin"]) | st.text(max_size=10)


@given(st.lists(st.tuples(_KEYS, _VALUES), max_size=6))
@strict
def test_metadata_of_any_names_and_values(metadata: list[tuple[str, str | bytes]]) -> None:
    read_metadata(metadata)


# --- to the agent --------------------------------------------------------------------------------------------------


class _Owner:
    def headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        assert b"".join(name + value for name, value in headers) is not None

    def data(self, data: memoryview) -> None:
        bytes(data)

    def ended(self, error: int | None) -> None:
        assert error is None or error >= 0


def read_http2(data: bytes, cut: int = 11) -> None:
    """As the agent reads its connection, with two calls open, piece by piece; and what it says then is bounded."""
    connection = agent_http2.Connection()
    streams = [connection.request(b"\x82", _Owner()) for _ in range(2)]
    connection.send(streams[0], b"x" * 70_000, last=True)
    connection.take()
    try:
        for start in range(0, len(data), cut):
            connection.receive(data[start : start + cut])
            said = connection.take()
            assert len(said) <= 200_000 + 20 * len(data)
    except agent_http2.Http2Error:
        pass
    connection.close()


class _Gone(Exception):
    pass


class _Wire:
    """A socket out of which these pieces come, and which takes everything; and no interrupts beside it."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter([*pieces, b""])
        self.said = 0

    def recv(self, size: int) -> bytes:
        return next(self._pieces)

    def send(self, data: bytes) -> int:
        self.said += len(data)
        return len(data)

    def close(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def let_through(self, block: Callable[..., object], *arguments: object) -> None:
        block(*arguments)

    def gone(self) -> NoReturn:
        raise _Gone


def read_workers_http2(data: bytes, cut: int = 11) -> list[object]:
    """As the worker reads its connection, with two calls open, piece by piece; returns what has come of those."""
    wire: Any = _Wire([data[start : start + cut] for start in range(0, len(data), cut)])
    connection = worker_http2.Connection(wire, wire, wire.gone)
    replies: list[object] = []
    for size in (70_000, 1):
        connection.start(
            worker_http2.Call(lambda call: replies.append(worker_calls.reply_of(call, 1))), b"\x82", b"x" * size
        )
    try:
        while True:
            connection.read()
    except _Gone:
        pass
    assert wire.said <= 200_000 + 20 * len(data)
    return replies


def read_hpack(data: bytes) -> None:
    decoder = guest_hpack.Decoder()
    try:
        for block in (data, data[: len(data) // 2]):
            decoder.decode(block)
    except guest_hpack.HpackError:
        pass


def _frames(*frames: tuple[int, int, int, bytes]) -> bytes:
    return b"".join(
        len(payload).to_bytes(3) + bytes([kind, flags]) + number.to_bytes(4) + payload
        for kind, flags, number, payload in frames
    )


_ANSWER = _frames(
    (4, 0, 0, b"\0\4\0\1\0\0"),
    (8, 0, 0, (70_000).to_bytes(4)),
    (1, 4, 1, b"\x88\x5f\x10application/grpc"),
    (0, 0, 1, b"\0\0\0\0\3abc"),
    (1, 0, 3, b"\x88"),
    (9, 4, 3, b"\x40\x0bgrpc-status\x010"),
    (6, 0, 0, bytes(8)),
    (3, 0, 1, (8).to_bytes(4)),
    (7, 0, 0, bytes(8)),
)


_WORKERS_ANSWER = _frames(
    (4, 0, 0, b"\0\4\0\1\0\0"),
    (8, 0, 0, (70_000).to_bytes(4)),
    (1, 4, 1, b"\x88\x5f\x10application/grpc"),
    (0, 0, 1, b"\0\0\0\0\5\n\3\n\1a"),
    (6, 0, 0, bytes(8)),
    (8, 0, 1, (70_000).to_bytes(4)),
    (1, 5, 1, b"\x40\x0bgrpc-status\x010"),
    (3, 0, 3, (8).to_bytes(4)),
    (7, 0, 0, bytes(8)),
)


@given(st.binary(max_size=300), st.integers(1, 64))
@strict
def test_what_an_agents_connection_gets_of_any_bytes(data: bytes, cut: int) -> None:
    read_http2(data, cut)
    read_workers_http2(data, cut)
    read_hpack(data)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=40)), max_size=8)
)
@strict
def test_what_an_agents_connection_gets_of_any_frames(frames: list[tuple[int, int, int, bytes]]) -> None:
    read_http2(_frames(*frames))
    read_workers_http2(_frames(*frames))


@given(edits, st.integers(1, 64))
@strict
def test_what_an_agents_connection_gets_of_an_answer_that_someone_changed(
    edits: list[tuple[int, int, bytes]], cut: int
) -> None:
    read_http2(mutated(_ANSWER, edits), cut)
    read_workers_http2(mutated(_WORKERS_ANSWER, edits), cut)
    read_hpack(mutated(b"\x88\x5f\x10application/grpc\x40\x0bgrpc-status\x010", edits))


def read_messages(data: bytes) -> None:
    """What the agent takes for the host's messages is what protobuf takes for the same ones."""
    for kind in ("AttachResponse", "AskResponse"):
        agree(kind, data)


_HOSTS = st.sampled_from(
    [
        pb.AttachResponse(run_cell=pb.RunCell(cell=300, code="é = 1", time_limit_s=1.5, grace_s=2)),
        pb.AttachResponse(
            open=pb.Open(context=pb.Context(kind=pb.CONTEXT_KIND_TEXT, file_name="c"), queries_allowed=True)
        ),
        pb.AttachResponse(write_file=pb.WriteFile(number=1, path="a/b", data=b"\0\xff")),
        pb.AskResponse(slots=[pb.Slot(text="a"), pb.Slot(failure=pb.Failure(reason=pb.FAILURE_REASON_MODEL))]),
    ]
).map(lambda message: message.SerializeToString())


@given(st.binary(max_size=300))
@strict
def test_a_hosts_message_of_any_bytes(data: bytes) -> None:
    read_messages(data)


@given(_HOSTS, edits)
@strict
def test_a_hosts_message_that_someone_changed(data: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    read_messages(mutated(data, edits))


def test_the_answer_that_is_changed_is_one_that_the_agent_takes() -> None:
    """Else the changes would be of something that nothing looks at."""
    connection = agent_http2.Connection()
    for _ in range(2):
        connection.request(b"\x82", _Owner())
    connection.receive(_ANSWER)
    assert connection.greeted
    replies = read_workers_http2(_WORKERS_ANSWER)
    assert replies == [worker_calls.Answered([("", "a")]), worker_calls.Refused("ended", "the call was reset")]
