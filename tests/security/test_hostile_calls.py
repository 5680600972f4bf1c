"""C: further calls of a hostile client, and names of files that are unlike others. Beside `test_hostile_guest.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from orchestrator.errors import FileFailed, FileFailure, LossCause
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire
from orchestrator.values import Answered, Batch, Slot
from tests.contract.test_sandbox_session import conversation
from tests.security.arena import Arena
from tests.security.conftest import Found
from tests.security.raw_guest import Headers, raw_guest
from tests.security.test_hostile_guest import attacked, greeted
from tests.unit.sandbox_doubles import HELLO, ScriptedGuest, ended

FAILED_PRECONDITION, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = "9", "3", "8"
ASK = pb.AskRequest(questions=[pb.Question(prompt="?")], max_concurrent=1).SerializeToString()


@pytest.mark.parametrize(
    ("size", "most"), [(wire.MAX_MESSAGE_BYTES, 1), (wire.MAX_MESSAGE_BYTES // 2, 4)], ids=["one", "together"]
)
async def test_C1_a_prompt_above_the_cap_from_a_hostile_client_is_RESOURCE_EXHAUSTED(
    size: int, most: int, found: Found
) -> None:
    """One that is longer than a message may be, and several that are not but are so together.

    The client is in this process, so what it takes of memory is not told apart from what the host does.
    """
    answered: list[int] = []
    go_on = asyncio.Event()

    async def answer(batch: Batch) -> Sequence[Slot]:
        answered.append(len(batch.questions))
        await go_on.wait()
        return [Answered("yes") for _ in batch.questions]

    codes: list[str] = []

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        request = pb.AskRequest(questions=[pb.Question(prompt="x" * size)], max_concurrent=1)
        asked = [asyncio.ensure_future(_code_of(guest.stub.Ask(request))) for _ in range(most)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        go_on.set()
        codes.extend([await each for each in asked])
        await guest.send(ended(cell.cell))

    async with conversation(ask, answer=answer) as hostile:
        await hostile.session.run("attack", None, 60)
    assert "RESOURCE_EXHAUSTED" in codes
    assert codes.count("OK") == len(answered) < most or not answered
    found("RESOURCE_EXHAUSTED")


async def _code_of(call: grpc.aio.UnaryUnaryCall[pb.AskRequest, pb.AskResponse]) -> str:
    try:
        await call
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


CREDENTIALS: dict[str, Headers] = {
    "none": [],
    "a-token": [("authorization", "Bearer rlm_" + "a" * 40)],
    "two-tokens": [("authorization", "Bearer a"), ("authorization", "Bearer b")],
    "another-run": [("authorization", "Bearer x"), ("x-rlm-run", "run_0123456789abcdef"), ("x-rlm-owner", "admin")],
    "a-peer": [("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=unix")],
}


@pytest.mark.parametrize("headers", CREDENTIALS.values(), ids=CREDENTIALS)
async def test_C7_credentials_of_any_kind_change_nothing_which_socket_it_is_decides(
    caplog: pytest.LogCaptureFixture, headers: Headers, found: Found
) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        for method, expected in (("Ask", FAILED_PRECONDITION), ("Attach", FAILED_PRECONDITION)):
            stream = guest.open(method, headers)
            guest.message(stream, ASK if method == "Ask" else HELLO.SerializeToString(), end=True)
            await guest.flush()
            await guest.until(stream)
            assert guest.statuses[stream] == expected
        await attack.check()
    found("FAILED_PRECONDITION, whatever they are")


ODD: dict[str, Headers] = {
    "empty-name": [("", "x")],
    "upper-case": [("X-Upper", "x")],
    "spaces": [("a b", "c d"), (" ", " ")],
    "newlines": [("x-a", "b\r\nx-c: d")],
    "nul": [("x-a", "b\0c")],
    "not-ascii": [("x-a", "\xff\xfe"), ("x-\xe9", "y")],
    "not-base64": [("x-bin", "%%%"), ("y-bin", "a")],
    "reserved": [("grpc-status", "0"), ("grpc-message", "fine"), ("grpc-tags-bin", "AAAA")],
    "pseudo-twice": [(":path", "/other"), (":authority", "other")],
    "pseudo-unknown": [(":protocol", "websocket")],
    "a-time-without-end": [("grpc-timeout", "99999999H")],
    "a-time-before": [("grpc-timeout", "-1S")],
    "a-time-of-nothing": [("grpc-timeout", "")],
    "an-encoding": [("grpc-encoding", "nonsense"), ("grpc-accept-encoding", "gzip,nonsense,identity")],
    "a-type": [("content-type", "text/html"), ("te", "gzip")],
    "connection": [("connection", "close"), ("transfer-encoding", "chunked"), ("content-length", "5")],
    "many": [(f"x-{number}", "") for number in range(400)],
    "the-same": [("x-a", "b")] * 400,
}


@pytest.mark.parametrize("headers", ODD.values(), ids=ODD)
async def test_C15_odd_metadata_is_refused_or_not_looked_at(
    caplog: pytest.LogCaptureFixture, headers: Headers, found: Found
) -> None:
    """A call without a cell is refused anyway: what matters is that it is the one thing that happens."""
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        stream = guest.open("Ask", headers)
        guest.message(stream, ASK, end=True)
        await guest.flush()
        await guest.until(stream)
        status = guest.statuses.get(stream, "")
        assert status != "0"
        assert status or guest.ended or stream in guest.resets
        await attack.check()
        found("refused, or not looked at")


async def test_C7_a_call_on_anothers_socket_that_ended_finds_nobody(
    caplog: pytest.LogCaptureFixture, found: Found
) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        attack.session.lose(LossCause.UNRESPONSIVE, "as a probe")
        await guest.until()
        with pytest.raises(ConnectionRefusedError):
            async with raw_guest(attack.socket):
                pass
        found("nobody listens")


FILES = {
    # Names that end in a refusal of their own, or in a file that is read as what it is.
    "device": ("../dev/null", "", FileFailure.INVALID_PATH, None),
    "linked-device": ("null", "os.symlink('/dev/null', '/tmp/null')", FileFailure.NOT_REGULAR, None),
    "linked-memory": ("mem", "os.symlink('/proc/1/mem', '/tmp/mem')", FileFailure.NOT_REGULAR, None),
    "socket": (
        "listening",
        "import socket; socket.socket(socket.AF_UNIX).bind('/tmp/listening')",
        FileFailure.NOT_REGULAR,
        None,
    ),
    "folder": ("folder", "os.makedirs('/tmp/folder')", FileFailure.NOT_REGULAR, None),
    "255-bytes": ("n" * 255, "open('/tmp/' + 'n' * 255, 'w').write('long')", None, b"long"),
    "255-bytes-of-others": (
        "\xe9" * 127 + "x",
        "open('/tmp/' + chr(233) * 127 + 'x', 'w').write('é')",
        None,
        "é".encode(),
    ),
    "256-bytes": ("n" * 256, "", FileFailure.INVALID_PATH, None),
    "not-utf-8": ("bad\udcff", "open(b'/tmp/bad\\xff', 'w').write('x')", FileFailure.INVALID_PATH, None),
    "replaced": ("bad\ufffd", "open(b'/tmp/bad\\xff', 'w').write('x')", FileFailure.NOT_FOUND, None),
    "nul": ("a\0b", "", FileFailure.INVALID_PATH, None),
    "controls": ("\x1b]0;x\x07", "open('/tmp/\\x1b]0;x\\x07', 'w').write('e')", FileFailure.INVALID_PATH, None),
}


@pytest.mark.docker
@pytest.mark.parametrize("name", FILES)
@pytest.mark.asyncio(loop_scope="module")
async def test_C23_a_file_of_an_odd_name_or_kind_is_read_as_a_file_or_refused(
    small: Arena, name: str, found: Found
) -> None:
    path, make, kind, held = FILES[name]
    sandbox = (await small._sandboxes())[0]
    made = await sandbox.run(f"import os, shutil\nshutil.rmtree('/tmp', ignore_errors=True)\n{make}")
    assert made.error is None, made.error.traceback
    if held is None:
        with pytest.raises(FileFailed) as refused:
            await sandbox.read_file(path)
        assert refused.value.kind is kind, refused.value
        found(refused.value.kind)
    else:
        assert await sandbox.read_file(path) == held
        found("read as a file")
    # The sandbox lives on: a name is no reason to lose it.
    assert (await sandbox.run("1 + 1")).stdout.text == "2\n"
