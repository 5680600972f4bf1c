"""The host's memory and time stay bounded whatever a guest asks, gives up or does not read; honest code is not hurt."""

from __future__ import annotations

import asyncio
import logging
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from orchestrator.errors import InvalidInput
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import asks, pace, wire_out
from orchestrator.sandbox.engine import ContainerExit
from orchestrator.sandbox.guest_server import GuestServer
from orchestrator.sandbox.session import GuestSession
from orchestrator.seams import Answer
from orchestrator.values import Answered, Batch, CellStatus, Slot
from tests.contract.test_sandbox_session import LIMITS, conversation, upper
from tests.security.raw_guest import RawGuest, raw_guest
from tests.unit.sandbox_doubles import HELLO, ScriptedGuest, ended, output

ONE = pb.AskRequest(questions=[pb.Question(prompt="?")], max_concurrent=1)


async def code_of(call: grpc.aio.UnaryUnaryCall[pb.AskRequest, pb.AskResponse]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@asynccontextmanager
async def raw_conversation(answer: Answer) -> AsyncIterator[tuple[GuestSession, RawGuest, int]]:
    """A guest that speaks HTTP/2 by itself, attached and open; the number is its stream's."""

    async def exit_of(_: float) -> ContainerExit | None:
        return None

    with tempfile.TemporaryDirectory(prefix="rlm-") as directory:
        socket = Path(directory, "host.sock")
        session = GuestSession("raw", LIMITS, exit_of)
        async with GuestServer(session, socket), raw_guest(socket) as guest:
            stream = guest.open("Attach")
            guest.message(stream, HELLO.SerializeToString())
            await guest.flush()
            await session.attached()
            session.begin(None, "context", answer)
            guest.message(stream, pb.AttachRequest(opened=pb.Opened()).SerializeToString())
            await guest.flush()
            await session.opened()
            yield session, guest, stream


async def test_a_batch_whose_answers_are_too_large_together_gets_those_that_fit() -> None:
    """One answer in 10,000 slots: it is made once, and would be copied 10,000 times for a message that cannot go."""
    said: list[tuple[int, set[str]]] = []

    async def same(batch: Batch) -> Sequence[Slot]:
        return [Answered("A" * 16_000)] * len(batch.questions)

    async def amplify(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        request = pb.AskRequest(questions=[pb.Question(prompt="x")] * 10_000, max_concurrent=1)
        response = await guest.stub.Ask(request)
        given = sum(slot.WhichOneof("outcome") == "text" for slot in response.slots)
        lost = {pb.FailureReason.Name(slot.failure.reason) for slot in response.slots if not slot.text}
        said.append((given, lost))
        await guest.send(ended(cell.cell))

    async with conversation(amplify, answer=same) as talk:
        assert (await talk.session.run("", None, None)).status is CellStatus.OK
    [(given, lost)] = said
    assert given == wire_out.MAX_ANSWER_BYTES // (16_000 + 8)
    assert lost == {"FAILURE_REASON_NO_ROOM"}


async def test_what_fails_in_the_host_reaches_the_guest_as_fixed_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = []

    def broken(_: object) -> list[bytes]:
        raise LookupError("sk-secret")

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        try:
            await guest.stub.Ask(ONE)
        except grpc.aio.AioRpcError as error:
            said.append((error.code(), error.details()))
        await guest.send(ended(cell.cell))

    monkeypatch.setattr(wire_out, "answer_pieces", broken)
    with caplog.at_level(logging.ERROR):
        async with conversation(ask, answer=upper) as talk:
            await talk.session.run("", None, None)
    assert said == [(grpc.StatusCode.INTERNAL, "the host could not answer")]
    assert "could not be answered" in caplog.text


async def test_calls_that_the_code_gave_up_leave_room_before_their_cleaning_up_has_ended() -> None:
    """asyncio.wait_for in the code: 64 calls time out together, and it asks 64 others at once."""
    asked: asyncio.Queue[str] = asyncio.Queue()
    cleaned = asyncio.Event()
    codes: list[set[grpc.StatusCode]] = []

    async def slow_to_stop(batch: Batch) -> Sequence[Slot]:
        if batch.questions[0].prompt == "second":
            return [Answered("yes")]
        asked.put_nowait("first")
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned.wait()
        raise AssertionError("nobody sets it")

    async def give_up(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        first = [guest.stub.Ask(ONE) for _ in range(asks.MAX_ASKS_IN_FLIGHT)]
        for _ in first:
            await asked.get()
        for call in first:
            call.cancel()
        again = pb.AskRequest(questions=[pb.Question(prompt="second")], max_concurrent=1)
        calls = [guest.stub.Ask(again) for _ in range(asks.MAX_ASKS_IN_FLIGHT)]
        codes.append(set(await asyncio.gather(*map(code_of, calls))))
        cleaned.set()
        await guest.send(ended(cell.cell))

    async with conversation(give_up, answer=slow_to_stop) as talk:
        await talk.session.run("", None, None)
    assert codes == [{grpc.StatusCode.OK}]


async def test_what_fails_after_the_code_gave_up_a_call_is_not_the_runs_failure() -> None:
    begun = asyncio.Event()
    stopped = asyncio.Event()

    async def fails_to_stop(batch: Batch) -> Sequence[Slot]:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
            raise OSError("cleaning up failed") from None
        raise AssertionError("nobody sets it")

    async def give_up(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        call = guest.stub.Ask(ONE)
        await begun.wait()
        call.cancel()
        await stopped.wait()
        await guest.send(ended(cell.cell))

    async with conversation(give_up, answer=fails_to_stop) as talk:
        assert (await talk.session.run("", None, None)).status is CellStatus.OK


async def cancels_its_own_work(batch: Batch) -> Sequence[Slot]:
    raise asyncio.CancelledError


async def is_cancelled_by_itself(batch: Batch) -> Sequence[Slot]:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    raise AssertionError("it is cancelled")


@pytest.mark.parametrize("answer", [cancels_its_own_work, is_cancelled_by_itself])
async def test_an_answerer_that_is_cancelled_leaves_no_call_without_an_end(answer: Answer) -> None:
    codes: list[grpc.StatusCode] = []

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        codes.append(await code_of(guest.stub.Ask(ONE)))
        await guest.send(ended(cell.cell))

    async with conversation(ask, answer=answer) as talk, asyncio.timeout(30):
        await talk.session.run("", None, None)
    assert codes == [grpc.StatusCode.CANCELLED]


async def test_what_ends_an_answerer_without_being_an_error_comes_out_of_the_run_and_ends_the_call() -> None:
    class Stopped(BaseException):
        """As a test runner's own, or a group with one in it."""

    async def stops(batch: Batch) -> Sequence[Slot]:
        raise Stopped

    codes: asyncio.Queue[grpc.StatusCode] = asyncio.Queue()

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        codes.put_nowait(await code_of(guest.stub.Ask(ONE)))

    async with conversation(ask, answer=stops) as talk, asyncio.timeout(30):
        with pytest.raises(Stopped):
            await talk.session.run("", None, None)
        assert await codes.get() is grpc.StatusCode.CANCELLED


async def test_giving_up_and_asking_again_without_end_waits_for_the_cleaning_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asks, "_MAX_ASKS_HELD", 3)
    held = most = 0
    begun: asyncio.Queue[None] = asyncio.Queue()
    go_on = asyncio.Event()

    async def slow_to_stop(batch: Batch) -> Sequence[Slot]:
        nonlocal held, most
        held += 1
        most = max(most, held)
        begun.put_nowait(None)
        try:
            await asyncio.Event().wait()
        finally:
            await go_on.wait()
            held -= 1
        raise AssertionError("nobody sets it")

    async def repeat(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        for _ in range(3):
            call = guest.stub.Ask(ONE)
            await begun.get()
            call.cancel()
        last = guest.stub.Ask(ONE)
        with pytest.raises(grpc.aio.AioRpcError):
            await guest.stub.Attach().read()  # refused; what was sent before it has been seen by then
        assert begun.empty()
        go_on.set()
        await begun.get()
        last.cancel()
        await guest.send(ended(cell.cell))

    async with conversation(repeat, answer=slow_to_stop) as talk:
        await talk.session.run("", None, None)
    assert most == 3


async def test_a_question_half_sent_in_one_cell_is_not_asked_in_the_next() -> None:
    asked: list[str] = []

    async def answer(batch: Batch) -> Sequence[Slot]:
        asked.append(batch.questions[0].prompt)
        return [Answered("yes")]

    async with raw_conversation(answer) as (session, guest, stream):
        first = asyncio.create_task(session.run("1", None, None))
        data = ONE.SerializeToString()
        body = struct.pack("!BI", 0, len(data)) + data
        call = guest.open("Ask")
        guest.http.send_data(call, body[:4])
        other = guest.open("Ask", end=True)  # answered when the one before it is being read
        await guest.flush()
        await guest.until(other)
        guest.message(stream, ended(1).SerializeToString())
        await guest.flush()
        assert (await first).status is CellStatus.OK
        await guest.until(call)  # it ends with its cell, though nothing more was sent
        second = asyncio.create_task(session.run("2", None, None))
        guest.message(stream, ended(2).SerializeToString())
        await guest.flush()
        await second
        assert guest.statuses.get(call) == str(grpc.StatusCode.CANCELLED.value[0])
    assert asked == []


async def test_answers_that_are_not_read_are_dropped_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sandbox.unread._TIMEOUT_S", 0.1)
    monkeypatch.setattr("orchestrator.sandbox.unread._SECOND_LOOK_S", 0.01)

    async def much(batch: Batch) -> Sequence[Slot]:
        return [Answered("x" * 1_000_000)]

    async with raw_conversation(much) as (session, guest, stream):
        refused: list[None] = []
        monkeypatch.setattr(session.pace, "charge_refused", lambda: refused.append(None))
        running = asyncio.create_task(session.run("1", None, None))
        calls = [guest.open("Ask") for _ in range(40)]
        for call in calls:
            guest.message(call, ONE.SerializeToString(), end=True)
        await guest.flush()
        for call in calls:
            await guest.until(call)  # its end; no window is given back for what has come
        assert guest.resets == set(calls)
        assert len(refused) == len(calls)
        guest.message(stream, ended(1).SerializeToString())
        await guest.flush()
        assert (await running).status is CellStatus.OK
        assert session.usable


async def test_answers_wait_for_room_until_others_have_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sandbox.unread._MAX_BYTES", 1_000)
    got: list[int] = []

    async def much(batch: Batch) -> Sequence[Slot]:
        return [Answered("x" * 900)]

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        replies = await asyncio.gather(*[guest.stub.Ask(ONE) for _ in range(50)])
        got.extend(len(reply.slots[0].text) for reply in replies)
        await guest.send(ended(cell.cell))

    async with conversation(ask, answer=much) as talk:
        await talk.session.run("", None, None)
    assert got == [900] * 50


async def test_a_guest_above_its_pace_is_read_later_and_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_BURST_S", 0.001)
    monkeypatch.setattr(pace, "_SHARE", 1.0)
    got: list[str] = []

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        calls = [guest.stub.Ask(ONE) for _ in range(60)]
        for reply in await asyncio.gather(*calls):
            got.append(reply.slots[0].text)
        await guest.send(output(cell.cell, 0, b"done"))
        await guest.send(ended(cell.cell, stdout_bytes=4))

    async with conversation(ask, answer=upper) as talk:
        assert (await talk.session.run("", None, None)).stdout.text == "done"
    assert got == ["?"] * 60


async def test_a_guest_above_its_pace_is_not_lost_by_a_few_questions_that_are_refused() -> None:
    async with conversation(answer=upper) as talk:
        talk.session.pace.charge(pace._BURST_S + 0.1)
        codes = [await code_of(talk.guest.stub.Ask(ONE)) for _ in range(3)]  # no cell runs that could ask
        assert talk.session.pace.wait_s() > 0
        assert codes == [grpc.StatusCode.FAILED_PRECONDITION] * 3
        assert talk.session.usable


async def test_a_host_that_is_slow_does_not_use_up_the_time_of_a_cell_that_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two ends count by clocks of their own: each delay of the host between two calls looks like running to it."""
    monkeypatch.setattr("orchestrator.sandbox.session._BACKSTOP_MARGIN_S", -1.98)
    monkeypatch.setattr("orchestrator.sandbox.cell._SECOND_LOOK_S", 0.0)

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            await guest.stub.Ask(ONE)
            delayed = loop.create_future()
            loop.call_later(0.1, delayed.set_result, None)
            await delayed
        await guest.send(ended(cell.cell))

    async with conversation(ask, answer=upper) as talk:
        assert (await talk.session.run("", None, 0.05)).status is CellStatus.OK


async def test_a_running_time_that_cannot_be_is_held_down_to_the_hosts_own() -> None:
    async def forge(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        await guest.send(ended(cell.cell, seconds=1e308))

    async with conversation(forge) as talk:
        began = asyncio.get_running_loop().time()
        result = await talk.session.run("", None, None)
        assert 0 <= result.seconds <= asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("limit_s", [0.0, -1.0, float("inf"), float("nan")])
async def test_a_time_limit_that_is_none_is_refused(limit_s: float) -> None:
    async with conversation() as talk:
        with pytest.raises(InvalidInput, match="time_limit_s: must be more than 0 s"):
            await talk.session.run("", None, limit_s)
        assert (await talk.session.run("fine", None, None)).stdout.text == "fine"
