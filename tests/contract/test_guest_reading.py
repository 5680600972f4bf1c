"""What the host reads of a guest, and when: no question is held against it that the host itself was slow to take."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Sequence

import pytest

from orchestrator.errors import LossCause
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import pace
from orchestrator.sandbox.asks import CellAsks
from orchestrator.sandbox.waits import Waits
from orchestrator.values import Answered, Batch, CellStatus, Failed, FailureReason, Slot
from tests.contract.test_guest_bounds import ONE, raw_conversation
from tests.contract.test_sandbox_session import upper
from tests.security.raw_guest import RawGuest
from tests.unit.sandbox_doubles import ended

LONG = pb.AskRequest(questions=[pb.Question(prompt="x" * 200_000)], max_concurrent=1).SerializeToString()
BODY = struct.pack("!BI", 0, len(LONG)) + LONG


async def send_as_granted(
    guest: RawGuest, call: int, body: bytes, *, end: bool = True, padding: int | None = None
) -> None:
    """Sends the body, as fast as the host lets it come."""
    while body:
        room = guest.http.local_flow_control_window(call)
        padded = padding if padding is not None and room > padding + 1 else None
        size = min(room - (0 if padded is None else padded + 1), 1_000, len(body))
        if size > 0:
            guest.http.send_data(call, body[:size], end_stream=end and size == len(body), pad_length=padded)
            body = body[size:]
        await guest.flush()
        if size <= 0:
            await asyncio.sleep(0.001)


async def test_a_client_that_pads_what_it_sends_gets_room_for_that() -> None:
    async with raw_conversation(upper) as (session, guest, stream):
        running = asyncio.create_task(session.run("1", None, None))
        call = guest.open("Ask")
        reading = asyncio.create_task(guest.until(call))
        async with asyncio.timeout(10):
            await send_as_granted(guest, call, BODY, padding=200)
        reading.cancel()
        guest.message(stream, ended(1).SerializeToString())
        await guest.flush()
        assert (await running).status is CellStatus.OK


async def test_a_question_that_the_host_is_slow_to_read_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sandbox.guest_server._READ_TIMEOUT_S", 0.8)
    asked: list[int] = []

    async def answer(batch: Batch) -> Sequence[Slot]:
        asked.append(len(batch.questions[0].prompt))
        return [Answered("yes")]

    async with raw_conversation(answer) as (session, guest, _):
        running = asyncio.create_task(session.run("1", None, None))
        call = guest.open("Ask")
        reading = asyncio.create_task(guest.until(call))
        await send_as_granted(guest, call, BODY[:100_000], end=False)  # what the host has begun to read
        session.pace.charge(pace._BURST_S + 0.25)  # as by other questions: one read more, and the next a second later
        await send_as_granted(guest, call, BODY[100_000:])
        async with asyncio.timeout(10):
            await reading
        assert guest.statuses[call] == "0"
        running.cancel()
    assert asked == [200_000]


async def test_what_many_calls_wait_at_a_time_puts_off_a_cells_limit_once() -> None:
    waits = Waits(60)
    asks = CellAsks(waits)
    began = time.monotonic()
    with waits.paused(), waits.paused(), waits.paused():
        await asyncio.sleep(0.05)
        with asks.call() as call:
            assert await asks.answer(upper(Batch((), 1)), call, 0) == []
        assert 0.05 <= waits.excused_s <= time.monotonic() - began
    before = waits.excused_s
    await asyncio.sleep(0.02)
    assert waits.excused_s == before


async def test_calls_above_the_pace_put_off_a_cells_limit_by_no_more_than_they_wait() -> None:
    go_on = asyncio.Event()

    async def answer(batch: Batch) -> Sequence[Slot]:
        await go_on.wait()
        return [Failed(FailureReason.BUDGET, "no")]

    async with raw_conversation(answer) as (session, guest, _):
        running = asyncio.create_task(session.run("1", None, None))
        began = time.monotonic()
        calls = [guest.open("Ask") for _ in range(50)]
        for call in calls:
            guest.message(call, ONE.SerializeToString(), end=True)
        await guest.flush()
        await asyncio.sleep(0.1)
        session.pace.charge(pace._BURST_S + 0.05)
        cell = session.askable()
        go_on.set()
        for call in calls:
            await guest.until(call)
        assert cell.waits.excused_s <= time.monotonic() - began
        running.cancel()


async def test_an_answerer_that_runs_out_of_time_is_not_taken_for_the_cell() -> None:
    async def late(batch: Batch) -> Sequence[Slot]:
        raise TimeoutError("the model's")

    async with raw_conversation(late) as (session, guest, _):
        running = asyncio.create_task(session.run("1", None, None))
        guest.message(guest.open("Ask"), ONE.SerializeToString(), end=True)
        await guest.flush()
        with pytest.raises(TimeoutError, match="the model's"):
            await running
        assert (await session.lost()).cause is LossCause.CLOSED
