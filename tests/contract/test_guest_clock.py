"""A cell's time without its waiting: the guest keeps the clock, and the host knows what was waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from orchestrator.errors import LossCause, SandboxLost
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import asks, guest_connection, pace, waits, wire
from orchestrator.sandbox.alarm import Alarm
from orchestrator.sandbox.cell import RunningCell
from orchestrator.values import Answered, Batch, CellStatus, Failed, FailureReason, Question, Slot
from tests.contract.test_guest_bounds import ONE, code_of, raw_conversation
from tests.contract.test_sandbox_session import conversation, upper
from tests.unit.sandbox_doubles import ScriptedGuest, echo, ended, stopping, time_check


class Clock:
    """As much of an event loop as a cell's clocks use, at a time of the test's own."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


async def checked(guest: ScriptedGuest, cell: pb.RunCell) -> tuple[float, bool]:
    await guest.send(time_check(cell.cell))
    waited = await guest.waited.get()
    assert waited.cell == cell.cell
    return waited.seconds, waited.waits


@pytest.mark.parametrize(
    ("slots", "allowed_s"),
    [([Answered("yes")], 0.25), ([Failed(FailureReason.BUDGET, "no")], 0.0)],
    ids=["answered", "failed"],
)
async def test_a_time_check_is_told_what_the_cell_has_waited(
    slots: Sequence[Slot], allowed_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_GUEST_ALLOWANCE_S", 0.25)
    clock = Clock()
    asked: asyncio.Queue[asyncio.Future[Sequence[Slot]]] = asyncio.Queue()
    told: list[tuple[float, bool]] = []

    async def answer(_: Batch) -> Sequence[Slot]:
        future: asyncio.Future[Sequence[Slot]] = asyncio.get_running_loop().create_future()
        asked.put_nowait(future)
        return await future

    async def check(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        monkeypatch.setattr(talk.session.askable(), "waits", waits.Waits(60, clock.time))
        monkeypatch.setattr(talk.session.askable().asks, "_waits", talk.session.askable().waits)
        clock.now = 3.0
        told.append(await checked(guest, cell))
        calls = [asyncio.ensure_future(code_of(guest.stub.Ask(ONE))) for _ in range(2)]
        both = [await asked.get() for _ in calls]
        clock.now = 8.0
        told.append(await checked(guest, cell))
        for future in both:
            future.set_result(slots)
        assert await asyncio.gather(*calls) == [grpc.StatusCode.OK] * 2
        clock.now = 20.0
        told.append(await checked(guest, cell))
        await guest.send(ended(cell.cell))

    async with conversation(check, answer=answer) as talk:
        await talk.session.run("", None, None)
    assert told == [(0.0, False), (5.0, True), (5.0 + 2 * allowed_s, False)]


@pytest.mark.parametrize(("told_s", "seconds"), [(6.5, 1.5), (100.0, 2.0), (3.0, 0.0)], ids=["as-told", "less", "none"])
async def test_a_results_seconds_leave_out_all_waiting_and_nothing_else(
    told_s: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    cell = RunningCell(1, 16, 8, None, upper, 60, Alarm())
    monkeypatch.setattr(cell, "_loop", clock)
    monkeypatch.setattr(cell, "waits", waits.Waits(60, clock.time))
    monkeypatch.setattr(cell, "_started", clock.now)
    with cell.waits.paused(), cell.asks.call() as call:
        await cell.ask(call, Batch((Question("?"),), 1), 0)
        clock.now = 4.0
    clock.now = 6.0
    with cell.waits.paused():
        clock.now = 7.0
        message = wire.parse_message(ended(1, seconds=told_s))
        assert isinstance(message, wire.CellEnded)
        cell.ended(message)  # in the middle of what it waits for
    assert (await cell.wait(60)).seconds == seconds


async def test_a_cell_that_is_stopping_has_its_questions_cancelled_and_can_ask_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asks, "MAX_ASKS_IN_FLIGHT", 1)
    asked, go_on = asyncio.Event(), asyncio.Event()
    codes: list[grpc.StatusCode] = []
    refused: list[None] = []

    async def slow_to_stop(_: Batch) -> Sequence[Slot]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            await go_on.wait()
        raise AssertionError("nobody sets it")

    async def stop(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        first = guest.stub.Ask(ONE)
        await asked.wait()
        await guest.send(stopping(cell.cell))
        codes.append(await code_of(guest.stub.Ask(ONE)))  # while the one before it is still being stopped
        go_on.set()
        codes.append(await code_of(first))
        codes.append(await code_of(guest.stub.Ask(pb.AskRequest())))
        await guest.send(ended(cell.cell, pb.CELL_STATUS_INTERRUPTED))

    async with conversation(stop, answer=slow_to_stop) as talk:
        monkeypatch.setattr(talk.session.pace, "charge_refused", lambda: refused.append(None))
        assert (await talk.session.run("", None, None)).status is CellStatus.INTERRUPTED
    assert codes == [grpc.StatusCode.CANCELLED] * 3
    assert refused == []


async def test_the_cell_after_one_that_was_stopped_can_ask() -> None:
    codes: list[grpc.StatusCode] = []

    async def stop_the_first(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        if cell.cell == 1:
            await guest.send(stopping(1))
        codes.append(await code_of(guest.stub.Ask(ONE)))
        await guest.send(ended(cell.cell))

    async with conversation(stop_the_first, answer=upper) as talk:
        await talk.session.run("", None, None)
        await talk.session.run("", None, None)
    assert codes == [grpc.StatusCode.CANCELLED, grpc.StatusCode.OK]


async def test_time_checks_whose_answers_are_read_are_never_too_many() -> None:
    async def check(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        for _ in range(500):
            await checked(guest, cell)
        await echo(guest, cell)

    async with conversation(check) as talk:
        assert (await talk.session.run("fine", None, None)).stdout.text == "fine"


async def test_a_flood_of_time_checks_whose_answers_are_not_read_ends_the_sandbox() -> None:
    """Each leaves an answer that the host must keep."""
    async with raw_conversation(upper) as (session, guest, stream):
        running = asyncio.create_task(session.run("1", None, None))
        for _ in range(3_000):
            guest.message(stream, time_check(1).SerializeToString())
        await guest.flush()
        with pytest.raises(SandboxLost) as caught:
            await running
        assert caught.value.cause is LossCause.PROTOCOL


async def test_while_nothing_of_a_guest_is_read_its_cell_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the code asks meanwhile is not known yet."""
    monkeypatch.setattr(guest_connection, "_LONGEST_PAUSE_S", 0.05)
    async with raw_conversation(upper) as (session, guest, _):
        running = asyncio.create_task(session.run("1", None, None))
        call = guest.open("Teapot", end=True)
        await guest.flush()
        await guest.until(call)
        cell = session.askable()
        assert cell.waits.waited_s == 0
        read_again = asyncio.Event()
        end_pause = cell.waits.end_pause

        def ended_pause() -> None:
            end_pause()
            read_again.set()

        monkeypatch.setattr(cell.waits, "end_pause", ended_pause)
        session.pace.charge(pace._BURST_S + 0.01)
        call = guest.open("Teapot", end=True)
        await guest.flush()
        await guest.until(call)
        assert cell.waits.now
        assert cell.waits.waited_s > 0
        await read_again.wait()
        assert not cell.waits.now
        running.cancel()


async def test_a_guest_that_stays_above_its_pace_does_not_stop_its_cells_clock_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code may dial the socket too, and send what means nothing while the cell does nothing."""
    clock = Clock()
    told: list[float] = []

    async def check(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        running = talk.session.askable()
        monkeypatch.setattr(running.waits, "_clock", clock.time)
        monkeypatch.setattr(running.waits, "_since", clock.now)
        running.waits.begin_pause()
        clock.now = 3600
        told.append((await checked(guest, cell))[0])
        told.append(running.waits.excused_s)
        await guest.send(ended(cell.cell))

    async with conversation(check, answer=upper) as talk:
        await talk.session.run("", None, 2.0)
    assert told == [2.0, 2.0]
