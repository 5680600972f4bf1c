"""The connections of a sandbox: the agent's carries the stream, and those of the code come and go beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from orchestrator.errors import LossCause
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import pace
from orchestrator.sandbox.session import SessionLimits
from orchestrator.values import Answered, Batch, Slot
from tests.contract.test_guest_bounds import ONE
from tests.contract.test_sandbox_session import Conversation, conversation, upper
from tests.security.raw_guest import RawGuest, raw_guest
from tests.unit.sandbox_doubles import ScriptedGuest, echo, ended

OK, UNIMPLEMENTED = "0", "12"


async def answers(guest: RawGuest) -> bool:
    """Whether the host takes calls on this connection."""
    call = guest.open("Teapot", end=True)
    await guest.flush()
    await guest.until(call)
    return guest.statuses.get(call) == UNIMPLEMENTED


async def asked_beside(socket: Path) -> str:
    """What becomes of a question on a connection beside the stream's."""
    async with raw_guest(socket) as other:
        call = other.open("Ask")
        other.message(call, ONE.SerializeToString(), end=True)
        await other.flush()
        await other.until(call)
        return other.statuses[call]


async def test_the_code_asks_on_a_connection_of_its_own_and_the_next_one_on_another() -> None:
    statuses: list[str] = []

    async def ask(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        statuses.append(await asked_beside(talk.socket))
        await echo(guest, cell)

    async with conversation(ask, answer=upper) as talk:
        for code in ("one", "two"):
            assert (await talk.session.run(code, None, None)).stdout.text == code
    assert statuses == [OK, OK]


def closes(guest: RawGuest) -> None:
    guest._writer.close()


def aborts(guest: RawGuest) -> None:
    guest._writer.transport.abort()


def breaks(guest: RawGuest) -> None:
    guest._writer.write(bytes(9))  # a piece of a call that was not begun


@pytest.mark.parametrize("end", [closes, aborts, breaks])
async def test_the_end_of_a_connection_of_the_code_gives_up_its_questions_and_nothing_else(
    end: Callable[[RawGuest], None],
) -> None:
    asked, given_up = asyncio.Event(), asyncio.Event()

    async def forever(_: Batch) -> Sequence[Slot]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError("nobody sets it")

    async def leave(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        if cell.cell == 1:
            async with raw_guest(talk.socket) as other:
                other.message(other.open("Ask"), ONE.SerializeToString(), end=True)
                await other.flush()
                await asked.wait()
                end(other)
                await given_up.wait()
        await echo(guest, cell)

    async with conversation(leave, answer=forever) as talk:
        for code in ("one", "two"):
            assert (await talk.session.run(code, None, None)).stdout.text == code
        assert talk.session.usable


async def test_one_connection_too_many_takes_the_place_of_the_oldest_without_the_stream() -> None:
    async with conversation() as talk, AsyncExitStack() as stack:
        others: list[RawGuest] = []
        for _ in range(9):
            others.append(await stack.enter_async_context(raw_guest(talk.socket)))
            assert await answers(others[-1])
        *replaced, first, second, third = others
        for other in replaced:
            await other.until()
            assert other.ended
        for other in (first, second, third):
            assert await answers(other)
        assert (await talk.session.run("still here", None, None)).stdout.text == "still here"


async def test_what_comes_on_other_connections_is_no_sign_of_the_agents_life(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[None] = []
    async with conversation() as talk, raw_guest(talk.socket) as other:
        monkeypatch.setattr(talk.session, "heard", lambda: heard.append(None))
        assert await answers(other)
        assert heard == []
        with pytest.raises(grpc.aio.AioRpcError):
            await talk.guest.stub.Attach().read()  # refused, and heard
        assert heard


async def test_an_agent_that_is_silent_is_lost_however_much_its_code_says() -> None:
    limits = SessionLimits(30, 1, silence_timeout_s=0.2, output_head_bytes=16, output_tail_bytes=8)
    async with conversation(limits=limits) as talk, raw_guest(talk.socket) as other:
        while not other.ended:
            await answers(other)
        assert (await talk.session.lost()).cause is LossCause.SILENT


async def dialed(talk: Conversation) -> bool:
    try:
        async with raw_guest(talk.socket):
            return True
    except ConnectionRefusedError:
        return False


async def test_nobody_listens_for_a_sandbox_that_is_lost() -> None:
    async with conversation() as talk, raw_guest(talk.socket) as other:
        assert await answers(other)
        talk.session.lose(LossCause.PROTOCOL, "as a test")
        await other.until()
        assert other.ended
        assert not await dialed(talk)


async def test_what_came_on_a_connection_before_it_broke_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    charged: list[float] = []
    async with conversation() as talk, raw_guest(talk.socket) as other:
        assert await answers(other)
        monkeypatch.setattr(talk.session.pace, "charge", charged.append)
        for _ in range(1_000):
            other.http.ping(bytes(8))
        other._writer.write(other.http.data_to_send() + bytes(9))
        await other.until()
    assert sum(charged) >= 1_001 * pace.FRAME_S


async def test_dialing_without_end_ends_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_BURST_S", 0.005)
    monkeypatch.setattr(pace, "_EXCESS_S", 0.005)
    monkeypatch.setattr(pace, "_SHARE", 1e-9)
    async with conversation() as talk, asyncio.timeout(30):
        while await dialed(talk):
            pass
        assert (await talk.session.lost()).cause is LossCause.PROTOCOL


async def test_a_question_on_a_connection_that_is_replaced_is_given_up() -> None:
    given_up = asyncio.Event()
    asked = asyncio.Event()

    async def forever(_: Batch) -> Sequence[Slot]:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            raise
        return [Answered("")]

    async def wait(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        await given_up.wait()
        await guest.send(ended(cell.cell))

    async with conversation(wait, answer=forever) as talk, AsyncExitStack() as stack:
        running = asyncio.create_task(talk.session.run("", None, None))
        await talk.guest.running.wait()
        first = await stack.enter_async_context(raw_guest(talk.socket))
        first.message(first.open("Ask"), ONE.SerializeToString(), end=True)
        await first.flush()
        await asked.wait()
        for _ in range(3):
            assert await answers(await stack.enter_async_context(raw_guest(talk.socket)))
        await running
