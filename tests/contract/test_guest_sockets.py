"""A guest's socket at its beginning and its end, by a guest that says nothing of use there."""

from __future__ import annotations

import asyncio
import gc
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.errors import LossCause
from orchestrator.sandbox import pace
from orchestrator.sandbox.engine import ContainerExit
from orchestrator.sandbox.guest_server import GuestServer
from orchestrator.sandbox.http2_frames import PREFACE
from orchestrator.sandbox.session import GuestSession
from tests.contract.test_sandbox_session import LIMITS

GREETING = PREFACE + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
PING = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"12345678"
PONG = bytes((0, 0, 8, 6, 1, 0, 0, 0, 0)) + b"12345678"


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[GuestSession, Path]]:
    async def exit_of(_: float) -> ContainerExit | None:
        return None

    with tempfile.TemporaryDirectory(prefix="rlm-") as directory:
        path = Path(directory, "host.sock")
        session = GuestSession("box", LIMITS, exit_of)
        async with GuestServer(session, path):
            yield session, path


def connect(path: Path) -> socket.socket:
    guest = socket.socket(socket.AF_UNIX)
    guest.setblocking(False)
    guest.connect(str(path))
    return guest


async def all_that_comes(guest: socket.socket) -> bytes:
    """Until nothing has come for a while, or the host has hung up."""
    said = b""
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(0.05):
                piece = await loop.sock_recv(guest, 65_536)
        except (TimeoutError, ConnectionError):
            return said
        if not piece:
            return said
        said += piece


async def test_a_sandbox_that_was_given_up_and_is_not_closed_yet_is_read_no_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "_BURST_S", 0.01)
    monkeypatch.setattr(pace, "_SHARE", 1e-9)
    async with serving() as (session, path):
        guest = connect(path)
        guest.send(GREETING + PING)
        assert PONG in await all_that_comes(guest)
        session.lose(LossCause.CLOSED, "its run was given up")
        guest.send(PING * 1_000)
        assert await all_that_comes(guest) == PONG * 1_000
        assert session.pace.wait_s() > 0
        guest.send(PING)
        assert await all_that_comes(guest) == b""
        guest.close()


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_comes_with_the_end_is_not_served_after_it(turns: int) -> None:
    async with serving() as (_, path):
        guest = connect(path)
        guest.send(GREETING)
        for _ in range(turns):
            await asyncio.sleep(0)
    await all_that_comes(guest)
    gc.collect()  # asyncio drops one that it has accepted and not yet told of
    with pytest.raises(BrokenPipeError):
        guest.send(PING)
    guest.close()


async def test_a_read_is_charged_however_little_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_BURST_S", 0.002)
    monkeypatch.setattr(pace, "_SHARE", 1e-9)
    async with serving() as (session, path):
        guest = connect(path)
        guest.send(GREETING + bytes((0, 4, 0, 99, 0, 0, 0, 0, 0)))  # the head of a frame of 1,024 bytes
        await all_that_comes(guest)
        assert session.pace.wait_s() == 0
        for _ in range(200):
            guest.send(b"x")
            for _ in range(3):
                await asyncio.sleep(0)
        assert session.pace.wait_s() > 0
        guest.close()


async def test_a_guest_that_connects_without_end_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_BURST_S", 0.0)
    monkeypatch.setattr(pace, "_EXCESS_S", 0.001)
    monkeypatch.setattr(pace, "_SHARE", 1e-9)
    async with serving() as (session, path):
        async with asyncio.timeout(10):
            while not session.over:
                connect(path).close()
                await asyncio.sleep(0.001)
        assert (await session.lost()).cause is LossCause.PROTOCOL
