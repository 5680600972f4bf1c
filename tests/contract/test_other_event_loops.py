"""The library runs in its caller's event loop, which need not be asyncio's own."""

from __future__ import annotations

import asyncio

import uvloop

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from tests.contract.test_guest_connections import asked_beside
from tests.contract.test_sandbox_session import ask, conversation, upper
from tests.unit.sandbox_doubles import ScriptedGuest


async def conversed() -> tuple[str, list[str]]:
    """A cell that asks, and what becomes of a question on a connection beside the stream's."""
    statuses: list[str] = []

    async def both(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        statuses.append(await asked_beside(talk.socket))
        await ask(guest, cell)

    async with conversation(both, answer=upper) as talk:
        result = await talk.session.run("a\nb", None, None)
    return result.stdout.text, statuses


def test_a_guest_is_served_in_an_event_loop_of_uvloop() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(conversed()) == ("A|B", ["0"])
