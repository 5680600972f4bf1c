"""The library's own sandbox, where its caller gives up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator import library
from orchestrator.config import Config

opened: list[str] = []
closed: list[str] = []


class FakeOrchestrator:
    @asynccontextmanager
    async def sandbox(self, context: object) -> AsyncIterator[object]:
        opened.append("x")
        try:
            yield object()
        finally:
            closed.append("x")


@asynccontextmanager
async def fake(config: Config) -> AsyncIterator[FakeOrchestrator]:
    yield FakeOrchestrator()


async def test_a_sandbox_whose_caller_is_cancelled_as_it_opens_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "open_orchestrator", fake)

    sandbox = library.Sandbox(api_key="k")

    async def use() -> None:
        async with sandbox:
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    while sandbox._held is None:
        time.sleep(0.001)  # noqa: ASYNC251 - this loop is busy while it opens in the other one
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(opened) == len(closed) == 1
    await asyncio.to_thread(library.close)
