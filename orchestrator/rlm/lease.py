"""A sandbox that opens in the background, so that its start costs no time while the model writes its first code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from orchestrator.errors import SandboxLost
from orchestrator.events import NoticeGiven, Outcome, SandboxEnded, SandboxStarted, Span
from orchestrator.seams import Sandbox

T = TypeVar("T")


class SandboxLease:
    """Made by `lease`."""

    def __init__(self, ready: asyncio.Future[Sandbox]) -> None:
        self._ready = ready

    async def sandbox(self) -> Sandbox:
        """Waits until it is open. Raises what opening it raised."""
        return await asyncio.shield(self._ready)

    async def meanwhile(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`; it is cancelled when the sandbox cannot be had, and what opening raised is raised."""
        if self._ready.done():
            self._ready.result()
            return await work()
        task = asyncio.create_task(work())
        try:
            either: list[asyncio.Future[Any]] = [task, self._ready]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._ready.result()
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])


@asynccontextmanager
async def lease(opening: AbstractAsyncContextManager[Sandbox], span: Span) -> AsyncIterator[SandboxLease]:
    """Opens a sandbox for the block. It is closed, or its opening is given up, when the block is left.

    A task of its own enters and leaves `opening`: timeouts and task groups in there must be left by the task that
    entered them, and must not be wound around the block. `span` gets its events, `SandboxStarted` only once it is open.
    """
    ready: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
    release: asyncio.Future[tuple[Outcome, str]] = asyncio.get_running_loop().create_future()
    holder = asyncio.create_task(_hold(opening, ready, release, span))
    ending = (Outcome.OK, "")
    try:
        yield SandboxLease(ready)
    except SandboxLost as loss:
        ending = (Outcome.FAILED, str(loss))
        raise
    except asyncio.CancelledError:
        ending = (Outcome.CANCELLED, "")
        raise
    finally:
        if ready.done():
            release.set_result(ending)
        else:
            holder.cancel()
        await asyncio.wait([holder])


async def _hold(
    opening: AbstractAsyncContextManager[Sandbox],
    ready: asyncio.Future[Sandbox],
    release: asyncio.Future[tuple[Outcome, str]],
    span: Span,
) -> None:
    asked = time.monotonic()
    name: str | None = None
    ending = (Outcome.CANCELLED, "")
    try:
        async with opening as sandbox:
            name = sandbox.name
            span.emit(SandboxStarted(name, time.monotonic() - asked, sandbox.warm))
            ready.set_result(sandbox)
            ending = await release
    except Exception as failure:
        if ready.done():
            # The block has its result by now: what went wrong in cleaning up must not take it away.
            ending = (Outcome.FAILED, str(failure))
            span.emit(NoticeGiven(f"closing sandbox {name} failed: {failure}"))
        else:
            ready.set_exception(failure)
            ready.exception()  # the block may end without asking for it, which is no loss
    finally:
        ready.cancel()
        if name is not None:
            span.emit(SandboxEnded(name, *ending))
