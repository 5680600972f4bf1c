"""The conversation with a guest, over a real socket: what it may say when, and what becomes of one that breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from orchestrator.errors import LossCause, SandboxLost
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox.engine import ContainerExit
from orchestrator.sandbox.guest_server import GuestServer
from orchestrator.sandbox.session import GuestSession, SessionLimits
from orchestrator.seams import Answer
from orchestrator.values import Answered, Batch, CellStatus, Failed, FailureReason, OutputChunk, Slot
from tests.unit.sandbox_doubles import HELLO, Behavior, ScriptedGuest, echo, ended, output, stopping, time_check

LIMITS = SessionLimits(
    cell_timeout_s=30, cell_grace_s=1, silence_timeout_s=20, output_head_bytes=16, output_tail_bytes=8
)


class Conversation:
    def __init__(self, session: GuestSession, guest: ScriptedGuest, socket: Path) -> None:
        self.session = session
        self.guest = guest
        self.socket = socket


@asynccontextmanager
async def conversation(
    behavior: Behavior = echo,
    *,
    answer: Answer | None = None,
    limits: SessionLimits = LIMITS,
    how_ended: ContainerExit | None = None,
    hello: pb.AttachRequest = HELLO,
    opened: bool = True,
) -> AsyncIterator[Conversation]:
    async def exit_of(_: float) -> ContainerExit | None:
        return how_ended

    with tempfile.TemporaryDirectory(prefix="rlm-") as directory:
        socket = Path(directory, "host.sock")
        session = GuestSession("box", limits, exit_of)
        async with GuestServer(session, socket):
            guest = ScriptedGuest(socket, behavior, hello)
            await guest.attach()
            living = asyncio.create_task(guest.live())
            try:
                if opened:
                    await session.attached()
                    session.begin(None, "context", answer)
                    await session.opened()
                yield Conversation(session, guest, socket)
            finally:
                await guest.close()
                living.cancel()
                await asyncio.wait({living})


async def upper(batch: Batch) -> Sequence[Slot]:
    return [Answered(question.prompt.upper()) for question in batch.questions]


async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
    """Asks each line of the code, and prints the answers."""
    questions = [pb.Question(prompt=line) for line in cell.code.splitlines()]
    response = await guest.stub.Ask(pb.AskRequest(questions=questions, max_concurrent=2))
    data = "|".join(slot.text or f"{slot.failure.reason}" for slot in response.slots).encode()
    await guest.send(output(cell.cell, 0, data))
    await guest.send(ended(cell.cell, stdout_bytes=len(data)))


async def never(guest: ScriptedGuest, cell: pb.RunCell) -> None:
    """A cell that does not end."""


async def until_interrupted(guest: ScriptedGuest, cell: pb.RunCell) -> None:
    assert await guest.interrupts.get() == cell.cell
    await guest.send(ended(cell.cell, pb.CELL_STATUS_INTERRUPTED))


async def test_cells_run_one_after_another_with_their_own_output() -> None:
    async with conversation() as talk:
        first = await talk.session.run("one", None, None)
        second = await talk.session.run("two", None, None)
        assert (first.status, first.stdout.text) == (CellStatus.OK, "one")
        assert second.stdout.text == "two"


async def test_a_cell_can_follow_the_open_without_waiting_for_its_answer() -> None:
    async with conversation(opened=False) as talk:
        await talk.session.attached()
        talk.session.begin(None, "context", None)
        assert (await talk.session.run("at once", None, None)).stdout.text == "at once"
        assert len(talk.guest.opens) == 1


async def test_the_last_output_comes_with_the_end_of_the_cell() -> None:
    async def at_the_end(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        await guest.send(output(cell.cell, 0, b"first"))
        rest = pb.Output(cell=cell.cell, stream=pb.OUTPUT_STREAM_STDOUT, offset=5, data=b", last")
        await guest.send(ended(cell.cell, stdout_bytes=11, outputs=[rest]))

    chunks: list[OutputChunk] = []
    async with conversation(at_the_end) as talk:
        result = await talk.session.run("", chunks.append, None)
    assert [chunk.text for chunk in chunks] == ["first", ", last"]
    assert result.stdout.text == "first, last"


async def test_output_streams_as_it_comes() -> None:
    async def two_pieces(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        await guest.send(output(cell.cell, 0, "é".encode()[:1]))
        await guest.send(output(cell.cell, 1, "é".encode()[1:]))
        await guest.send(output(cell.cell, 0, b"warn", pb.OUTPUT_STREAM_STDERR))
        await guest.send(ended(cell.cell, stdout_bytes=2, stderr_bytes=4))

    chunks: list[OutputChunk] = []
    async with conversation(two_pieces) as talk:
        result = await talk.session.run("", chunks.append, None)
    assert [chunk.text for chunk in chunks] == ["é", "warn"]
    assert (result.stdout.text, result.stderr.text) == ("é", "warn")


async def test_a_sink_that_raises_does_not_touch_the_cell() -> None:
    def broken(_: OutputChunk) -> None:
        raise ValueError

    async with conversation() as talk:
        assert (await talk.session.run("fine", broken, None)).stdout.text == "fine"


async def test_questions_are_answered_in_order() -> None:
    async with conversation(ask, answer=upper) as talk:
        assert (await talk.session.run("a\nb", None, None)).stdout.text == "A|B"


async def test_a_failed_question_is_a_slot_and_not_a_status() -> None:
    async def refuse(batch: Batch) -> Sequence[Slot]:
        return [Failed(FailureReason.BUDGET, "no") for _ in batch.questions]

    async with conversation(ask, answer=refuse) as talk:
        result = await talk.session.run("a", None, None)
    assert result.stdout.text == str(pb.FAILURE_REASON_BUDGET)


@pytest.mark.parametrize(
    ("request_message", "code"),
    [
        (pb.AskRequest(max_concurrent=1), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.AskRequest(questions=[pb.Question(prompt="x")]), grpc.StatusCode.INVALID_ARGUMENT),
        (
            pb.AskRequest(questions=[pb.Question(prompt="x", context=pb.Attachment(data=b"x"))], max_concurrent=1),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            pb.AskRequest(questions=[pb.Question()] * 10_001, max_concurrent=1),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
    ids=["no-questions", "no-concurrency", "unknown-kind", "too-many"],
)
async def test_a_bad_question_is_refused_and_the_sandbox_lives(
    request_message: pb.AskRequest, code: grpc.StatusCode
) -> None:
    codes = []

    async def bad(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        try:
            await guest.stub.Ask(request_message)
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
        await guest.send(ended(cell.cell))

    async with conversation(bad, answer=upper) as talk:
        assert (await talk.session.run("", None, None)).status is CellStatus.OK
    assert codes == [code]


@pytest.mark.parametrize("answer", [upper, None], ids=["between-cells", "not-allowed"])
async def test_a_question_without_a_cell_is_refused(answer: Answer | None) -> None:
    async with conversation(answer=answer) as talk:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await talk.guest.stub.Ask(pb.AskRequest(questions=[pb.Question(prompt="x")], max_concurrent=1))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_cells_end_cancels_what_is_still_being_answered() -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def forever(batch: Batch) -> Sequence[Slot]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async def leave(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        call = guest.stub.Ask(pb.AskRequest(questions=[pb.Question(prompt="x")], max_concurrent=1))
        await asked.wait()
        await guest.send(ended(cell.cell))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.CANCELLED

    async with conversation(leave, answer=forever) as talk:
        await talk.session.run("", None, None)
        assert cancelled.is_set()


async def test_the_answerers_failure_comes_out_of_run_and_ends_the_sandbox() -> None:
    async def broken(batch: Batch) -> Sequence[Slot]:
        raise LookupError("the caller's own")

    async with conversation(ask, answer=broken) as talk:
        with pytest.raises(LookupError, match="the caller's own"):
            await talk.session.run("a", None, None)
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("a", None, None)
        assert caught.value.cause is LossCause.CLOSED


async def test_interrupt_stops_the_running_cell_only() -> None:
    async with conversation(until_interrupted) as talk:
        await talk.session.interrupt()  # nothing runs: nothing happens
        run = asyncio.create_task(talk.session.run("", None, None))
        await talk.guest.running.wait()
        await talk.session.interrupt()
        assert (await run).status is CellStatus.INTERRUPTED


async def test_cancelling_a_run_interrupts_the_cell_and_gives_the_sandbox_up() -> None:
    async with conversation(never) as talk:
        run = asyncio.create_task(talk.session.run("", None, None))
        await talk.guest.running.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert await talk.guest.interrupts.get() == 1
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("", None, None)
        assert caught.value.cause is LossCause.CLOSED


async def test_a_cell_that_outlives_all_its_limits_loses_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sandbox.session._BACKSTOP_MARGIN_S", -1.99)
    async with conversation(never) as talk:
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("", None, 0.01)
        assert caught.value.cause is LossCause.UNRESPONSIVE


async def test_a_cell_has_its_own_limit_after_one_with_a_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def only_the_first(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        if cell.cell == 1:
            await echo(guest, cell)

    monkeypatch.setattr("orchestrator.sandbox.session._BACKSTOP_MARGIN_S", -1.99)
    async with conversation(only_the_first) as talk:
        await talk.session.run("", None, 300)
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("", None, 0.01)
        assert caught.value.cause is LossCause.UNRESPONSIVE


async def test_a_cell_that_has_ended_waits_until_its_answering_is_stopped() -> None:
    asked, stopped = asyncio.Event(), asyncio.Event()

    async def slow_to_stop(batch: Batch) -> Sequence[Slot]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            # As one that closes a sandbox of its own first, however often it is cancelled.
            stopping = asyncio.ensure_future(stop())
            while not stopping.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(stopping)
        raise AssertionError

    async def stop() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        stopped.set()

    async def ask_and_end(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        call = guest.stub.Ask(pb.AskRequest(questions=[pb.Question(prompt="a")], max_concurrent=1))
        await asked.wait()
        await guest.send(ended(cell.cell))
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call

    async with conversation(ask_and_end, answer=slow_to_stop) as talk:
        await talk.session.run("", None, None)
        assert stopped.is_set()


async def test_nothing_of_a_closed_sandbox_is_kept_until_its_cells_limit_is_over() -> None:
    async with conversation() as talk:
        await talk.session.run("", None, 300)
        session, alarm = weakref.ref(talk.session), weakref.ref(talk.session._alarm)
    del talk
    gc.collect()
    assert (session(), alarm()) == (None, None)


async def test_waiting_for_an_answer_does_not_count_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(batch: Batch) -> Sequence[Slot]:
        loop = asyncio.get_running_loop()
        waited = loop.create_future()
        loop.call_later(0.3, waited.set_result, None)  # longer than the cell may run
        await waited
        return await upper(batch)

    monkeypatch.setattr("orchestrator.sandbox.session._BACKSTOP_MARGIN_S", -1.8)
    async with conversation(ask, answer=slow) as talk:
        assert (await talk.session.run("a", None, 0.01)).stdout.text == "A"


@pytest.mark.parametrize(
    ("how_ended", "cause"),
    [
        (ContainerExit(1, False), LossCause.EXITED),
        (ContainerExit(137, True), LossCause.OUT_OF_MEMORY),
        (ContainerExit(0, True), LossCause.EXITED),
        (None, LossCause.PROTOCOL),
    ],
)
async def test_a_stream_that_ends_is_explained_by_how_the_container_ended(
    how_ended: ContainerExit | None, cause: LossCause
) -> None:
    async def hang_up(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        await guest.hang_up()

    async with conversation(hang_up, how_ended=how_ended) as talk:
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("", None, None)
        assert caught.value.cause is cause


async def test_silence_loses_the_sandbox() -> None:
    limits = SessionLimits(30, 1, silence_timeout_s=0.05, output_head_bytes=16, output_tail_bytes=8)
    async with conversation(never, limits=limits) as talk:
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("", None, None)
        assert caught.value.cause is LossCause.SILENT


VIOLATIONS = {
    "second-hello": [HELLO],
    "second-opened": [pb.AttachRequest(opened=pb.Opened())],
    "nothing": [pb.AttachRequest()],
    "other-cell": [ended(7)],
    "output-of-other-cell": [output(7, 0, b"x")],
    "output-of-no-stream": [output(1, 0, b"x", pb.OUTPUT_STREAM_UNSPECIFIED)],
    "empty-output": [output(1, 0, b"")],
    "too-much-output": [output(1, 0, b"x" * 25)],
    "output-twice": [output(1, 0, b"x"), output(1, 0, b"x")],
    "two-gaps": [output(1, 5, b"x"), output(1, 10, b"x")],
    "last-output-of-other-cell": [ended(1, outputs=[pb.Output(cell=7, stream=pb.OUTPUT_STREAM_STDOUT, data=b"x")])],
    "last-output-too-large": [ended(1, outputs=[pb.Output(cell=1, stream=pb.OUTPUT_STREAM_STDOUT, data=b"x" * 25)])],
    "last-output-empty": [ended(1, outputs=[pb.Output(cell=1, stream=pb.OUTPUT_STREAM_STDOUT)])],
    "no-status": [ended(1, pb.CELL_STATUS_UNSPECIFIED)],
    "error-without-error": [ended(1, pb.CELL_STATUS_ERROR)],
    "died-without-death": [ended(1, pb.CELL_STATUS_WORKER_DIED)],
    "death-without-dying": [ended(1, worker_death=pb.WorkerDeath(cause=pb.DEATH_CAUSE_EXITED))],
    "not-a-time": [ended(1, seconds=float("nan"))],
    "many-variables": [ended(1, variables=[pb.Variable(name="x")] * 201)],
    "long-name": [ended(1, variables=[pb.Variable(name="x" * 5_000)])],
    "stopping-of-other-cell": [stopping(7)],
    "time-check-of-other-cell": [time_check(7)],
    "heartbeats": [pb.AttachRequest(heartbeat=pb.Heartbeat())] * 101,
}


@pytest.mark.parametrize("messages", VIOLATIONS.values(), ids=VIOLATIONS.keys())
async def test_a_broken_rule_ends_the_sandbox(messages: list[pb.AttachRequest]) -> None:
    async def violate(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        for message in messages:
            await guest.send(message)

    async with conversation(violate) as talk:
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("", None, None)
        assert caught.value.cause is LossCause.PROTOCOL
        assert not talk.session.usable


@pytest.mark.parametrize("message", [stopping(0), stopping(1), time_check(0), time_check(1)], ids=str)
async def test_what_is_said_of_a_cell_when_none_runs_ends_the_sandbox(message: pb.AttachRequest) -> None:
    async with conversation() as talk:
        await talk.session.run("", None, None)
        await talk.guest.send(message)
        assert (await talk.session.lost()).cause is LossCause.PROTOCOL


@pytest.mark.parametrize(
    "first",
    [pb.AttachRequest(heartbeat=pb.Heartbeat()), pb.AttachRequest(hello=pb.Hello(protocol_version=99))],
    ids=["no-hello", "other-version"],
)
async def test_a_wrong_greeting_ends_the_sandbox(first: pb.AttachRequest) -> None:
    async with conversation(hello=first, opened=False) as talk:
        with pytest.raises(SandboxLost) as caught:
            await talk.session.attached()
        assert caught.value.cause is LossCause.PROTOCOL


async def test_a_second_stream_is_refused() -> None:
    async with conversation() as talk:
        second = talk.guest.stub.Attach()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await talk.session.run("still here", None, None)).stdout.text == "still here"


async def test_a_message_over_the_cap_is_not_taken() -> None:
    async def flood(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        await guest.send(output(cell.cell, 0, b"x" * (65 * 1024 * 1024)))

    async with conversation(flood) as talk:
        with pytest.raises(SandboxLost) as caught:
            await talk.session.run("", None, None)
        assert caught.value.cause is LossCause.PROTOCOL


async def test_compressed_messages_are_refused() -> None:
    codes = []

    async def compress(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        request = pb.AskRequest(questions=[pb.Question(prompt="x" * 100_000)], max_concurrent=1)
        try:
            await guest.stub.Ask(request, compression=grpc.Compression.Gzip)
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
        await guest.send(ended(cell.cell))

    async with conversation(compress, answer=upper) as talk:
        await talk.session.run("", None, None)
    assert codes == [grpc.StatusCode.UNIMPLEMENTED]


def raw_ask(guest: ScriptedGuest) -> grpc.aio.StreamUnaryMultiCallable[bytes, bytes]:
    """The method without a message type, as a client that is not ours would call it."""
    return guest.channel.stream_unary("/rlm.guest.v1.GuestService/Ask")


@pytest.mark.parametrize("messages", [[], [b"\xff\xff\xff"], [b""]], ids=["nothing", "garbage", "empty"])
async def test_bytes_that_are_no_question_are_refused_with_fixed_text(messages: list[bytes]) -> None:
    said = []

    async def send(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        try:
            await raw_ask(guest)(iter(messages))
        except grpc.aio.AioRpcError as error:
            said.append((error.code(), error.details()))
        await guest.send(ended(cell.cell))

    async with conversation(send, answer=upper) as talk:
        assert (await talk.session.run("", None, None)).status is CellStatus.OK
    assert said == [(grpc.StatusCode.INVALID_ARGUMENT, "there is no question")]


async def test_a_question_that_nobody_may_ask_is_refused_before_it_has_come() -> None:
    """A request whose message never arrives would wait for it, if the refusal came after the reading."""

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with conversation(answer=upper) as talk:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw_ask(talk.guest)(silence())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_questions_over_the_bytes_in_flight_are_refused_and_the_sandbox_lives() -> None:
    release = asyncio.Event()
    codes: list[grpc.StatusCode] = []

    async def hold(batch: Batch) -> Sequence[Slot]:
        await release.wait()
        return [Answered("") for _ in batch.questions]

    async def hoard(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        async def big() -> None:
            question = pb.Question(prompt="x" * (50 * 1024 * 1024))
            try:
                await guest.stub.Ask(pb.AskRequest(questions=[question], max_concurrent=1))
                codes.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
                release.set()

        await asyncio.gather(*(big() for _ in range(3)))
        await guest.send(ended(cell.cell))

    async with conversation(hoard, answer=hold) as talk:
        assert (await talk.session.run("", None, None)).status is CellStatus.OK
    assert sorted(code.name for code in codes) == ["OK", "OK", "RESOURCE_EXHAUSTED"]
