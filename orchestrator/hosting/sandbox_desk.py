"""Sandboxes that a service keeps for its callers, each until it is deleted, lost, or idle for too long."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from orchestrator.budget import Budget
from orchestrator.config import RunSettings
from orchestrator.errors import Busy, InvalidInput, NotFound, RLMError
from orchestrator.events import EventLog
from orchestrator.held import Held
from orchestrator.hosting.kept_sandbox import KeptSandbox, cell_items
from orchestrator.hosting.orders import SandboxOrder
from orchestrator.hosting.premises import Gone, Premises, check_order, converted, order_hash
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.hosting.sandbox_openings import Openings
from orchestrator.store.database import MAX_PAGE
from orchestrator.store.rows import Total
from orchestrator.store.runs import make_token, read_token
from orchestrator.tasks import TaskSet
from orchestrator.values import CellResult, Limits, OutputChunk
from orchestrator.views import Page, SandboxView

logger = logging.getLogger(__name__)
T = TypeVar("T")


class SandboxDesk:
    """Made by `open`; shares the runs' orchestrator, store, quotas and room."""

    def __init__(self, premises: Premises, defaults: RunSettings) -> None:
        self._premises = premises
        self._defaults = defaults
        self._kept: dict[str, KeptSandbox] = {}
        self._numbers = itertools.count(1)
        self._tasks = TaskSet()
        self._openings = Openings(premises.clock, self._tasks, self._end)
        self._cells: set[asyncio.Task[CellResult]] = set()
        self._gone = Gone("sandbox")

    @classmethod
    @asynccontextmanager
    async def open(cls, runs: RunDesk) -> AsyncIterator[SandboxDesk]:
        """All sandboxes are gone after the block."""
        desk = cls(runs.premises, runs.defaults)
        try:
            yield desk
        finally:
            await desk.drain(0)
            await desk._tasks.close()
            await desk.drain(0)  # what was opened at the last moment

    async def create(self, order: SandboxOrder) -> SandboxView:
        """Returns once it is open. With the request id of a sandbox that is there, and an equal order, that one.

        Raises `InvalidInput`, `NotFound`, `RequestConflict`, `QuotaExceeded`, `TooLarge`, `SandboxUnavailable`,
        `ShuttingDown`.
        """
        self._premises.check_open()
        idle_s = self._check(order)
        said = order_hash(order.context, order.model, order.idle_timeout_s, order.labels)
        key = (order.principal.name, order.request_id)
        return (await self._openings.get(key, said, lambda: self._open(order, idle_s))).view()

    async def run_cell(
        self, sandbox_id: str, code: str, time_limit_s: float | None = None, *, principal: Principal
    ) -> AsyncIterator[OutputChunk | CellResult]:
        """Output as it comes, the result last. `time_limit_s` None: the service's default.

        Closing the iterator interrupts the cell; variables are kept when it stops in time. Raises at the first step:
        `NotFound`, `Busy`, `InvalidInput`, `ShuttingDown`; and at any: `SandboxLost`.
        """
        self._premises.check_open()
        if time_limit_s is not None:
            try:
                converted(RunSettings, self._defaults, {"cell_timeout_s": time_limit_s})
            except InvalidInput as error:
                raise InvalidInput("time_limit", error.rule) from None
        kept = self._free(sandbox_id, principal)
        self._occupy(kept)
        printed: asyncio.Queue[OutputChunk] = asyncio.Queue()
        limit = self._defaults.cell_timeout_s if time_limit_s is None else time_limit_s
        cell = self._tasks.spawn(self._cell(kept, code, limit, printed), f"{kept.id}: a cell")
        self._cells.add(cell)
        cell.add_done_callback(self._cells.discard)
        items = cell_items(cell, printed, lambda: self._interrupt(kept))
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def interrupt(self, sandbox_id: str, *, principal: Principal) -> None:
        """As Ctrl-C would; does nothing without a cell. Raises `NotFound`."""
        await self._find(sandbox_id, principal).sandbox.interrupt()

    async def write_file(self, sandbox_id: str, path: str, data: bytes, *, principal: Principal) -> None:
        """Raises `FileFailed`, `NotFound`, `Busy` while a cell runs, `SandboxLost`."""
        await self._with_file(sandbox_id, principal, lambda kept: kept.sandbox.write_file(path, data))

    async def read_file(self, sandbox_id: str, path: str, *, principal: Principal) -> bytes:
        """Raises `FileFailed`, `NotFound`, `Busy` while a cell runs, `SandboxLost`."""
        return await self._with_file(sandbox_id, principal, lambda kept: kept.sandbox.read_file(path))

    async def get(self, sandbox_id: str, *, principal: Principal) -> SandboxView:
        """Raises `NotFound`, which says what became of it."""
        return self._find(sandbox_id, principal).view()

    async def list(self, page_size: int = 50, page_token: str = "", *, principal: Principal) -> Page[SandboxView]:
        """The newest first. Raises `InvalidInput`."""
        if not 1 <= page_size <= MAX_PAGE:
            raise InvalidInput("page_size", f"must be from 1 to {MAX_PAGE}; it is {page_size}.")
        before = read_token(page_token)[1] if page_token else float("inf")
        seen = [kept for kept in self._kept.values() if principal.may_see(kept.principal) and kept.number < before]
        seen.sort(key=lambda kept: -kept.number)
        token = make_token(seen[page_size - 1].created_at, seen[page_size - 1].number) if len(seen) > page_size else ""
        return Page(tuple(kept.view() for kept in seen[:page_size]), token)

    async def delete(self, sandbox_id: str, *, principal: Principal) -> None:
        """With what runs in it; it is gone when this returns. Raises `NotFound`."""
        await self._end(self._find(sandbox_id, principal), "it was deleted")

    async def drain(self, grace_s: float) -> None:
        """No new work from now on; waits for cells that run, then ends all sandboxes."""
        self._premises.closing = True
        if self._cells and grace_s > 0:
            await asyncio.wait(tuple(self._cells), timeout=grace_s)
        await self._openings.stop()
        for kept in tuple(self._kept.values()):
            await self._end(kept, "the service was shut down")

    # --- within ---

    def _check(self, order: SandboxOrder) -> float:
        check_order(order.request_id, order.labels)
        settings = self._premises.settings
        idle_s = settings.idle_timeout_s if order.idle_timeout_s is None else order.idle_timeout_s
        if not 0 < idle_s <= settings.max_idle_timeout_s:
            raise InvalidInput(
                "idle_timeout", f"must be above 0 and at most {settings.max_idle_timeout_s:g} s; it is {idle_s:g} s."
            )
        if order.model is not None and not order.model.model:
            raise InvalidInput("model", "is empty.", "Name one, or leave it out for a sandbox without llm_query.")
        if order.model is not None:
            given = msgspec.structs.asdict(order.model.limits)
            if given["max_sandboxes"] is not None:
                raise InvalidInput("max_sandboxes", "is not for a sandbox: its code opens no others.", "Leave it out.")
            converted(RunSettings, self._defaults, {name: value for name, value in given.items() if value is not None})
        return idle_s

    async def _open(self, order: SandboxOrder, idle_s: float) -> KeptSandbox:
        premises, principal = self._premises, order.principal
        premises.room.take(principal)
        kept: KeptSandbox | None = None
        try:
            limits = Limits()
            if order.model is not None:
                limits = await premises.within_quota(principal, order.model.limits)
            budget = Budget(limits, await premises.share_of(principal))
            questions = None
            if order.model is not None:
                settings = msgspec.structs.replace(
                    self._defaults, model=order.model.model, models=(), max_cost_usd=limits.max_cost_usd
                )
                questions = await premises.orchestrator.questions(settings, budget)
            number = next(self._numbers)
            now = premises.clock.now()
            name = f"sbx_{secrets.token_hex(8)}"
            span = EventLog(*premises.sinks_of(order.trace_context, name)).root()
            kept = KeptSandbox(name, number, principal.name, order.labels, idle_s, now, span, budget, questions)
            context = await kept.stack.enter_async_context(premises.context(order.context, principal))
            answer = questions.answer if questions is not None else None
            opening = premises.orchestrator.sandboxes.open(context, answer, height=premises.kept_height)
            held = await Held.enter(opening)
            kept.stack.push_async_callback(held.leave)
        except BaseException:
            premises.room.give_back(principal.name)
            if kept is not None:
                await kept.stack.aclose()
            raise
        kept.opened(held.value, premises.clock.now())
        self._kept[kept.id] = kept
        if (life_s := limits.max_seconds) is not None:
            kept.ends_at = premises.clock.now() + life_s
            kept.life = premises.clock.call_later(life_s, lambda: self._live_out(kept, life_s))
        self._tasks.spawn(self._watch(kept), f"{kept.id}: watching for its loss")
        self._idle(kept)
        return kept

    async def _cell(
        self, kept: KeptSandbox, code: str, limit_s: float, printed: asyncio.Queue[OutputChunk]
    ) -> CellResult:
        try:
            return await kept.run(code, limit_s, printed)
        finally:
            try:
                await self._count(kept)  # what is not on record is lost when the process is killed
            finally:
                self._rest(kept)

    async def _with_file(self, sandbox_id: str, principal: Principal, work: Callable[[KeptSandbox], Awaitable[T]]) -> T:
        kept = self._free(sandbox_id, principal)
        self._occupy(kept)
        try:
            return await work(kept)
        finally:
            self._rest(kept)

    def _find(self, sandbox_id: str, principal: Principal) -> KeptSandbox:
        kept = self._kept.get(sandbox_id)
        if kept is None:
            raise self._gone.error(sandbox_id, principal)
        if not principal.may_see(kept.principal):
            raise NotFound("sandbox", sandbox_id)
        return kept

    def _free(self, sandbox_id: str, principal: Principal) -> KeptSandbox:
        kept = self._find(sandbox_id, principal)
        if kept.busy:
            raise Busy(f"the sandbox {sandbox_id} is busy.", "Wait for its cell's end, or interrupt it.")
        return kept

    def _occupy(self, kept: KeptSandbox) -> None:
        kept.busy, kept.expires_at = True, None
        if kept.alarm is not None:
            kept.alarm.cancel()
            kept.alarm = None

    def _rest(self, kept: KeptSandbox) -> None:
        if kept.loss:
            self._tasks.spawn(self._end(kept, kept.loss), f"{kept.id}: lost")
        elif kept.id in self._kept:
            self._idle(kept)

    def _idle(self, kept: KeptSandbox) -> None:
        clock = self._premises.clock
        kept.busy, kept.expires_at = False, min(clock.now() + kept.idle_s, kept.ends_at)
        kept.alarm = clock.call_later(kept.idle_s, lambda: self._expire(kept))

    def _expire(self, kept: KeptSandbox) -> None:
        if not kept.busy:
            kept.busy = True  # no cell may begin in it any more
            self._tasks.spawn(self._end(kept, f"it was idle for {kept.idle_s:g} s"), f"{kept.id}: expired")

    def _live_out(self, kept: KeptSandbox, life_s: float) -> None:
        """With the cell that runs in it: the limit is for its whole life."""
        reason = f"its time is over: max_seconds={life_s:g} s"
        self._tasks.spawn(self._end(kept, reason), f"{kept.id}: lived out")

    async def _watch(self, kept: KeptSandbox) -> None:
        kept.loss = str(await kept.sandbox.lost())
        if not kept.busy:
            await self._end(kept, kept.loss)

    async def _end(self, kept: KeptSandbox, reason: str) -> None:
        """Also when its caller is cancelled meanwhile."""
        if self._kept.pop(kept.id, None) is None:
            return
        for alarm in (kept.alarm, kept.life):
            if alarm is not None:
                alarm.cancel()
        self._gone.add(kept.id, kept.principal, reason)
        await asyncio.shield(asyncio.ensure_future(self._take_down(kept)))

    async def _take_down(self, kept: KeptSandbox) -> None:
        self._openings.forget(kept)
        try:
            await kept.stack.aclose()
        except RLMError as error:
            logger.warning("closing the sandbox %s failed: %s", kept.id, error)
        finally:
            kept.closed()
            self._premises.room.give_back(kept.principal)
        await self._count(kept)

    async def _count(self, kept: KeptSandbox) -> None:
        """Adds what it has used since the last time to its principal's total on record."""
        spent, before = kept.budget.spent, kept.counted
        kept.counted = Total(spent.cost_usd, spent.usage.total_tokens)
        more = Total(kept.counted.cost_usd - before.cost_usd, kept.counted.tokens - before.tokens)
        if more == Total():
            return
        try:
            await self._premises.threads.call(self._premises.store.add_total, kept.principal, more)
        except RLMError as error:
            kept.counted = before
            logger.error("what the sandbox %s has used is not on record: %s", kept.id, error)

    def _interrupt(self, kept: KeptSandbox) -> None:
        self._tasks.spawn(kept.sandbox.interrupt(), f"{kept.id}: interrupting")
