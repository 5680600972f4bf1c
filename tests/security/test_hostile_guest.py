"""C: a hostile client on a sandbox's socket in place of our agent. It is refused or lost; its neighbor notices nothing.

No container is needed: the guest's side of the socket is all an attacker's anyway.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import os
import pickle
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import h2.exceptions
import pytest

from orchestrator.cli import ask, watch
from orchestrator.errors import BudgetExceeded, LossCause, SandboxLost
from orchestrator.events import CellEnded, EventLog, Outcome, Record, SpanKind
from orchestrator.folds.log_lines import LogSink
from orchestrator.folds.log_setup import show_logs
from orchestrator.folds.printable import printable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.rlm.batch import Questions
from orchestrator.rlm.leaf import Leaf
from orchestrator.sandbox import wire
from orchestrator.sandbox.engine import ContainerExit
from orchestrator.sandbox.guest_server import GuestServer
from orchestrator.sandbox.session import GuestSession
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.values import Answered, Batch, CellStatus, Slot
from tests.contract.test_sandbox_session import LIMITS, conversation
from tests.security.arena import timed
from tests.security.conftest import Found
from tests.security.raw_guest import RawGuest, raw_guest
from tests.unit.rlm_world import FolderContexts
from tests.unit.sandbox_doubles import HELLO, ScriptedGuest, ended, output, stopping, time_check

RESOURCE_EXHAUSTED, FAILED_PRECONDITION, INVALID_ARGUMENT, UNIMPLEMENTED = "8", "9", "3", "12"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MEMORY_SLACK = 160 << 20  # bytes: two messages of the largest size, and an allocator's slack


class NoContexts(FolderContexts):
    """Nothing may be written."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))


@dataclass
class Attack:
    session: GuestSession
    socket: Path
    check: Callable[[], Any]


@asynccontextmanager
async def attacked(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Attack]:
    """A server without a guest yet, beside a neighbor whose cells run and ask; nothing unhandled may be logged."""
    unhandled: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))

    async def exit_of(_: float) -> ContainerExit | None:
        return None

    async def shout(batch: Batch) -> Sequence[Slot]:
        return [Answered(question.prompt.upper()) for question in batch.questions]

    async def shouted(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        reply = await guest.stub.Ask(pb.AskRequest(questions=[pb.Question(prompt=cell.code)], max_concurrent=1))
        data = reply.slots[0].text.encode()
        await guest.send(output(cell.cell, 0, data))
        await guest.send(ended(cell.cell, stdout_bytes=len(data)))

    memory = _resident_bytes()
    with tempfile.TemporaryDirectory(prefix="rlm-") as directory, caplog.at_level(logging.WARNING):
        socket = Path(directory, "host.sock")
        session = GuestSession("attacked", LIMITS, exit_of)
        async with conversation(shouted, answer=shout) as neighbor, GuestServer(session, socket):

            async def check() -> None:
                await timed(answers())

            async def answers() -> None:
                result = await neighbor.session.run("well?", None, 20)
                assert result.stdout.text == "WELL?"

            yield Attack(session, socket, check)
            await check()
        assert not unhandled, unhandled
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    gc.collect()
    assert _resident_bytes() < memory + _MEMORY_SLACK


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def greeted(guest: RawGuest, attack: Attack) -> int:
    stream = guest.open("Attach")
    guest.message(stream, HELLO.SerializeToString())
    await guest.flush()
    await attack.session.attached()
    return stream


async def test_C3_an_item_of_1_GB_is_refused_by_its_announced_length(
    caplog: pytest.LogCaptureFixture, found: Found
) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        stream = guest.open("Attach")
        guest.message(stream, b"x" * 1000, claim=1 << 30)
        await guest.flush()
        await guest.until(stream)
        assert guest.ended or stream in guest.resets or guest.statuses[stream] == RESOURCE_EXHAUSTED
        found("RESOURCE_EXHAUSTED")


async def test_C4_10000_calls_opened_and_reset_at_once_starve_nobody(
    caplog: pytest.LogCaptureFixture, found: Found
) -> None:
    """The rapid reset of CVE-2023-44487."""
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        await guest.flush()
        for number in range(10_000):
            stream = guest.open("Ask")
            guest.http.reset_stream(stream)
            if number % 500 == 0:
                await guest.flush()
                await attack.check()
            if guest.ended:
                break
        await guest.flush()
        await attack.check()
        found(f"its own connection only, after {number + 1:,}")


async def test_C9_calls_without_a_cell_are_FAILED_PRECONDITION_and_by_the_thousand_they_end_the_sandbox(
    caplog: pytest.LogCaptureFixture, found: Found
) -> None:
    """Each costs the host a little; a guest of ours sends a few in a race with the end of a cell."""
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        question = pb.AskRequest(questions=[pb.Question(prompt="?")], max_concurrent=1).SerializeToString()
        refused = 0
        while not guest.ended:
            stream = guest.open("Ask")
            guest.message(stream, question, end=True)
            await guest.flush()
            await guest.until(stream)
            if stream in guest.statuses:
                refused += guest.statuses[stream] == FAILED_PRECONDITION
            if refused % 250 == 0:
                await attack.check()
            assert refused < 10_000
        assert refused > 100
        assert (await attack.session.lost()).cause is LossCause.PROTOCOL
        found(f"FAILED_PRECONDITION; sandbox ended: protocol, after {refused:,}")


async def test_C6_a_slow_reader_cannot_make_the_host_hold_its_answers(
    caplog: pytest.LogCaptureFixture, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for answers of 60 MB on every stream that it may have, and reads none."""
    monkeypatch.setattr("orchestrator.sandbox.unread._TIMEOUT_S", 1.0)
    answered: list[int] = []

    async def answer(batch: Batch) -> Sequence[Slot]:
        answered.append(len(batch.questions))
        return [Answered("A" * 600_000)] * len(batch.questions)

    memory = _resident_bytes()
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        stream = await greeted(guest, attack)
        attack.session.begin(None, "context", answer)
        guest.message(stream, pb.AttachRequest(opened=pb.Opened()).SerializeToString())
        await guest.flush()
        await attack.session.opened()
        running = asyncio.create_task(attack.session.run("x", None, 60))
        hundred = pb.AskRequest(questions=[pb.Question(prompt="?")] * 100, max_concurrent=1).SerializeToString()
        calls = [guest.open("Ask") for _ in range(70)]
        for call in calls:
            guest.message(call, hundred, end=True)
        await guest.flush()
        for call in calls[:5]:
            await guest.until(call)  # its end; no window is given back for what has come
            await attack.check()
            assert _resident_bytes() < memory + 4 * wire.MAX_MESSAGE_BYTES + _MEMORY_SLACK
        assert guest.resets >= set(calls[:5])
        guest.message(stream, ended(1).SerializeToString())
        await guest.flush()
        await running
    found(f"its calls reset, one after the other; {len(answered)} answered")


async def test_C4_a_flood_of_questions_that_nothing_is_left_for_starves_nobody(
    caplog: pytest.LogCaptureFixture, found: Found
) -> None:
    """Three calls of 10,000 questions at a time, again and again; each was 40,000 events, and seconds of the loop."""
    records: list[Record] = []
    asked = [0]

    def used_up() -> BudgetExceeded:
        return BudgetExceeded("max_calls", 1, 1, 1)

    span = EventLog(records.append).root()
    questions = Questions(Leaf(FakeChatModel(lambda _: "never"), NoContexts()), NoContexts(), used_up=used_up)

    async def answer(batch: Batch) -> Sequence[Slot]:
        asked[0] += len(batch.questions)
        return await questions.answer(batch, span)

    request = pb.AskRequest(questions=[pb.Question(prompt=str(n)) for n in range(10_000)], max_concurrent=10_000)

    async def flood(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        async def again() -> None:
            for _ in range(4):
                await _status(guest.stub.Ask(request))

        await asyncio.gather(again(), again(), again())
        await guest.send(ended(cell.cell))

    patient = replace(LIMITS, silence_timeout_s=60)  # this guest has no heartbeat, and is made to wait
    async with attacked(caplog) as attack, conversation(flood, answer=answer, limits=patient) as hostile:
        running = asyncio.create_task(hostile.session.run("attack", None, 120))
        while not running.done():
            await attack.check()
        assert (await running).status is CellStatus.OK
    assert asked == [120_000]
    assert len(records) == 12 * 4
    found(f"{len(records)} events for {asked[0]:,} questions")


async def test_C17_a_question_half_sent_in_a_cell_is_not_paid_for_in_the_next(
    caplog: pytest.LogCaptureFixture, found: Found
) -> None:
    answered: list[str] = []

    async def answer(batch: Batch) -> Sequence[Slot]:
        answered.append(batch.questions[0].prompt)
        return [Answered("yes")]

    question = pb.AskRequest(questions=[pb.Question(prompt="?")], max_concurrent=1).SerializeToString()
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        stream = await greeted(guest, attack)
        attack.session.begin(None, "context", answer)
        guest.message(stream, pb.AttachRequest(opened=pb.Opened()).SerializeToString())
        await guest.flush()
        await attack.session.opened()
        cell = asyncio.create_task(attack.session.run("1", None, 60))
        held = [guest.open("Ask") for _ in range(40)]
        for call in held:
            guest.http.send_data(call, b"\0")
        whole = guest.open("Teapot", end=True)  # answered when all before it have been seen
        await guest.flush()
        await guest.until(whole)
        guest.message(stream, ended(1).SerializeToString())
        await guest.flush()
        await cell
        for call in held:
            await guest.until(call)
        cell = asyncio.create_task(attack.session.run("2", None, 60))
        for call in held:
            try:
                guest.http.send_data(call, question, end_stream=True)
            except h2.exceptions.ProtocolError:
                pass  # the stream has ended
        await guest.flush()
        guest.message(stream, ended(2).SerializeToString())
        await guest.flush()
        await cell
        await attack.check()
    assert answered == []
    found("CANCELLED with its cell")


async def test_C9_calls_after_the_sandboxs_end_find_nobody(caplog: pytest.LogCaptureFixture, found: Found) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        attack.session.lose(LossCause.CLOSED, "")
        stream = guest.open("Ask")
        guest.message(stream, b"", end=True)
        await guest.flush()
        await guest.until(stream)
        assert guest.ended or stream in guest.resets or guest.statuses[stream] == FAILED_PRECONDITION
        found("FAILED_PRECONDITION")


async def test_C6_C17_slow_and_half_open_streams_hold_up_nobody(caplog: pytest.LogCaptureFixture, found: Found) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        for _ in range(40):
            stream = guest.open("Ask")  # never a body
            guest.http.send_data(stream, b"\0")
        await guest.flush()
        await attack.check()
        found("held by none but its own")


async def test_C7_a_second_stream_on_the_socket_is_refused(caplog: pytest.LogCaptureFixture, found: Found) -> None:
    """On the same connection, and on one of its own."""
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest, raw_guest(attack.socket) as other:
        await greeted(guest, attack)
        for client in (guest, other):
            stream = client.open("Attach")
            client.message(stream, HELLO.SerializeToString())
            await client.flush()
            await client.until(stream)
            assert client.statuses[stream] == FAILED_PRECONDITION
        assert attack.session.usable
        found("FAILED_PRECONDITION")


async def test_C12_a_call_or_a_message_of_no_known_kind(caplog: pytest.LogCaptureFixture, found: Found) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        attach = await greeted(guest, attack)
        stream = guest.open("Exec", end=True)
        await guest.flush()
        await guest.until(stream)
        assert guest.statuses[stream] == UNIMPLEMENTED
        guest.message(attach, b"\xfa\x3e\x04pwnd")  # field 1007: unknown, so that no message is set
        await guest.flush()
        assert (await attack.session.lost()).cause is LossCause.PROTOCOL
        found("UNIMPLEMENTED; sandbox ended: protocol")


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a" + b"\xff" * 9 + b"\x7f",  # a length over all bounds
        b"\x0b" * 15_000,  # groups in groups
        pickle.dumps(os.getcwd),
        os.urandom(4096),
    ],
    ids=["C12-length", "C14-nesting", "C20-pickle", "noise"],
)
async def test_C14_C20_bytes_that_are_no_message_end_the_sandbox(
    caplog: pytest.LogCaptureFixture, data: bytes, found: Found
) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        attach = await greeted(guest, attack)
        guest.message(attach, data)
        await guest.flush()
        loss = await attack.session.lost()
        assert loss.cause is LossCause.PROTOCOL
        found("sandbox ended: protocol")


async def test_C15_huge_metadata_is_refused(caplog: pytest.LogCaptureFixture, found: Found) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        await greeted(guest, attack)
        # gRPC reads the first such block of a connection whole; from then on its cap of 16 KiB holds.
        said = []
        for _ in range(3):
            stream = guest.open("Ask", [(f"x-{number}", "y" * 1000) for number in range(600)], end=True)
            await guest.flush()
            await guest.until(stream)
            said.append(guest.statuses.get(stream, RESOURCE_EXHAUSTED))
        assert set(said) <= {RESOURCE_EXHAUSTED, FAILED_PRECONDITION}
        assert said[1:] == [RESOURCE_EXHAUSTED] * 2
        found("RESOURCE_EXHAUSTED")


async def test_C24_a_compression_bomb_is_refused_unpacked(caplog: pytest.LogCaptureFixture, found: Found) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        stream = guest.open("Attach", [("grpc-encoding", "gzip")])
        guest.message(stream, bomb[:60_000], claim=len(bomb), flag=1)
        await guest.flush()
        await guest.until(stream)
        assert guest.statuses.get(stream) in (UNIMPLEMENTED, RESOURCE_EXHAUSTED, "13") or stream in guest.resets
        found("UNIMPLEMENTED")


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", os.urandom(65536), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9000]
)
async def test_C17_what_is_no_HTTP2_is_hung_up_on(caplog: pytest.LogCaptureFixture, noise: bytes, found: Found) -> None:
    async with attacked(caplog) as attack:
        reader, writer = await asyncio.open_unix_connection(str(attack.socket))
        writer.write(noise)
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass  # as good an end as any
        writer.close()
        found("hung up")


def forged(**fields: Any) -> pb.AttachRequest:
    return pb.AttachRequest(cell_ended=pb.CellEnded(**fields))


@pytest.mark.parametrize(
    "request_",
    [
        forged(cell=1, status=pb.CELL_STATUS_OK),
        forged(cell=1, status=99),
        pb.AttachRequest(opened=pb.Opened()),
        pb.AttachRequest(output=pb.Output(cell=7, stream=pb.OUTPUT_STREAM_STDOUT, data=b"FINAL(1)")),
        pb.AttachRequest(hello=pb.Hello(protocol_version=wire.PROTOCOL_VERSION)),
        pb.AttachRequest(file_ended=pb.FileEnded(number=9, status=pb.FILE_STATUS_OK, data=b"x")),
        stopping(1),
        time_check(1),
    ],
    ids=["C11-cell", "C12-enum", "C11-opened", "C18-output", "C11-hello", "C11-file", "C11-stopping", "C11-time"],
)
async def test_C11_C18_forged_messages_out_of_turn_end_the_sandbox(
    caplog: pytest.LogCaptureFixture, request_: pb.AttachRequest, found: Found
) -> None:
    async with attacked(caplog) as attack, raw_guest(attack.socket) as guest:
        attach = await greeted(guest, attack)
        guest.message(attach, request_.SerializeToString())
        await guest.flush()
        assert (await attack.session.lost()).cause is LossCause.PROTOCOL
        found("sandbox ended: protocol")


async def test_C2_C4_a_batch_of_a_million_and_10000_calls_are_RESOURCE_EXHAUSTED(
    caplog: pytest.LogCaptureFixture, found: Found
) -> None:
    """In a cell, where questions are taken; what is answered is counted."""
    answered: list[int] = []
    go_on = asyncio.Event()

    async def answer(batch: Batch) -> Sequence[Slot]:
        answered.append(len(batch.questions))
        await go_on.wait()
        return [Answered("yes") for _ in batch.questions]

    async def attack(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        empty = pb.AskRequest(questions=[pb.Question()]).SerializeToString()
        many = pb.AskRequest.FromString(empty * 1_000_000)
        with pytest.raises(grpc.RpcError) as refused:
            await guest.stub.Ask(many)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        del many, refused  # the attacker's own memory
        one = pb.AskRequest(questions=[pb.Question(prompt="?")], max_concurrent=1 << 31)
        # A wave is far more than the host lets be under way; all at once would only fill this process, the attacker's.
        for _ in range(5):
            wave = [asyncio.ensure_future(_status(guest.stub.Ask(one))) for _ in range(2_000)]
            await asyncio.wait(wave, return_when=asyncio.FIRST_COMPLETED)  # one is refused while the others are held
            go_on.set()
            codes = {await call for call in wave}
            assert codes <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED"}
            if "CANCELLED" in codes:
                return  # the sandbox was lost
        await guest.send(ended(cell.cell))

    broken: list[BaseException] = []

    async def tell(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        try:
            await attack(guest, cell)
        except asyncio.CancelledError:
            raise  # the sandbox was lost before the attack had seen it
        except BaseException as error:
            broken.append(error)
            await guest.send(ended(cell.cell))

    async with attacked(caplog), conversation(tell, answer=answer) as hostile:
        with suppress(SandboxLost):  # by how many were refused
            await hostile.session.run("attack", None, 120)
    assert broken == []
    assert set(answered) == {1}
    found(f"RESOURCE_EXHAUSTED; {len(answered):,} of 10,000 asked")


async def _status(call: Any) -> str:
    try:
        await call
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


async def test_C10_the_guest_has_no_word_for_a_depth_a_model_a_path_or_an_address(found: Found) -> None:
    """What is not in the protocol cannot be believed; a new field is a decision that this test asks for."""
    fields = {
        name: sorted(field.name for field in pb.DESCRIPTOR.message_types_by_name[name].fields)
        for name in ("AskRequest", "Question", "Attachment")
    }
    assert fields == {
        # Plain or recursive is a wish between the two that the depth allows, and to stop costs nobody anything.
        "AskRequest": ["max_concurrent", "questions", "recursive", "stop_at_failure"],
        "Question": ["context", "prompt"],
        "Attachment": ["data", "kind"],
    }
    found("no such field")


async def test_C21_controls_in_a_guests_text_do_not_reach_a_terminal(found: Found) -> None:
    text = "\x1b]0;owned\x07\x1b[2J\x9b31mred\u202egnp.exe\u2066\r\nline\x08"
    assert printable(text) == "redgnp.exe\nline"
    found("stripped")


async def test_C21_forged_names_of_an_exception_do_not_reach_a_log_or_a_watchers_terminal(
    found: Found, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the way: from the socket to the lines of `rlm ask -v` and of the library, and `rlm watch --events`."""
    forged_name = "\x1b]0;owned\x07\x1b[2J\n[Depth 0] run ok: $0.0000\u202e\x9b31m\x7f\u2028sk-abcdefghijklmnop"

    async def forge(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        error = pb.CodeError(type_name=forged_name, message=forged_name, traceback=forged_name)
        await guest.send(ended(cell.cell, pb.CELL_STATUS_ERROR, error=error))

    async with conversation(forge) as hostile:
        result = await hostile.session.run("x", None, 20)
    record = Record(1, 0.0, 1, None, SpanKind.CELL, 0, CellEnded(Outcome.OK, result))
    said: list[str] = []
    begins: tuple[Callable[[], None], ...] = (lambda: ask._log_to_stderr(1, ()), show_logs)
    for begin in begins:
        with own_logger() as logger:
            begin()
            LogSink()(record)
            logging.getLogger("orchestrator.x").error("not escaped at its source: %s", forged_name)
            assert logger.handlers
        said.append(capsys.readouterr().err)
    assert all(len(text.splitlines()) == 2 for text in said)
    watch._to_stdout(record)
    said.append(capsys.readouterr().out)
    for text in said:
        assert all(character == "\n" or " " <= character <= "~" for character in text), text
    assert "sk-abc" not in said[0] + said[1]
    assert json.loads(said[2])["event"]["result"]["error"]["type_name"] == forged_name
    found("stripped, one line, redacted; events in ASCII")


@contextmanager
def own_logger() -> Iterator[logging.Logger]:
    """Our logger as a fresh program finds it."""
    logger = logging.getLogger("orchestrator")
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.NOTSET)  # other tests of this process may have set it
    try:
        yield logger
    finally:
        logger.handlers, logger.propagate = before[0], before[1]
        logger.setLevel(before[2])


async def test_C29_questions_during_the_end_are_cancelled_and_waited_for(found: Found) -> None:
    asked = asyncio.Event()
    cancelled: list[bool] = []

    async def answer(_: Batch) -> Sequence[Slot]:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise AssertionError("nobody sets it")

    async def asks(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        await _status(guest.stub.Ask(pb.AskRequest(questions=[pb.Question(prompt="?")], max_concurrent=1)))

    async with conversation(asks, answer=answer) as talking:
        running = asyncio.create_task(talking.session.run("x", None, 20))
        await asked.wait()
        await talking.session.close()
        with pytest.raises(SandboxLost):
            await running
    assert cancelled == [True]
    found("cancelled")
