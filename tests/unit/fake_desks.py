"""Desks that keep everything in memory and run nothing: a run does what the test says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from orchestrator.config import Config, RunSettings
from orchestrator.errors import Busy, InvalidInput, NotFound, RequestConflict, ShuttingDown, TooLarge
from orchestrator.events import NoticeGiven, Record, SpanKind
from orchestrator.hosting.orders import ContextHeader, RunOrder, RunQuery, SandboxOrder
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.hosting.sandbox_desk import SandboxDesk
from orchestrator.protocol.rlm.v1 import server_pb2
from orchestrator.server.listening import Listening, ListenSettings, listening
from orchestrator.values import CellResult, ContextInfo, Ending, OutputChunk, Spent
from orchestrator.views import ContextView, Missed, Page, RunProblem, RunState, RunView, SandboxView, SessionView
from orchestrator.wire.addresses import UnixAddress
from tests.unit.sample_runs import records_of, whole_run

WHOLE = records_of(whole_run)


@dataclass
class FakeRuns:
    """A run ends at once with `script`'s records, unless `hold` is set: then it is running until it is cancelled."""

    script: list[Record] = field(default_factory=lambda: list(WHOLE))
    hold: bool = False
    fault: BaseException | None = None  # raised by the next call of any kind
    missed: Missed | None = None  # in place of these records, the first time
    orders: list[RunOrder] = field(default_factory=list)
    views: dict[str, RunView] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    watchers: int = 0
    watched_to_end: asyncio.Event = field(default_factory=asyncio.Event)
    watching: asyncio.Event = field(default_factory=asyncio.Event)
    slow_start: asyncio.Event | None = None
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    gave_up: asyncio.Event = field(default_factory=asyncio.Event)  # a start that was cancelled
    most_bytes: int = 100_000_000
    draining: bool = False
    drained_with: list[float] = field(default_factory=list)
    ended: asyncio.Condition = field(default_factory=asyncio.Condition)

    def settings_of(self, given: Mapping[str, object]) -> RunSettings:
        config = Config.load(given, environ={}, dotenv=None)
        return RunSettings(**{name: getattr(config, name) for name in RunSettings.__struct_fields__})

    async def start(self, order: RunOrder) -> RunView:
        self._fail()
        if self.draining:
            raise ShuttingDown
        if self.slow_start is not None:
            self.starting.set()
            try:
                await self.slow_start.wait()
            except asyncio.CancelledError:
                self.gave_up.set()
                raise
        for known in self.orders:
            if order.request_id and known.request_id == order.request_id:
                if known != order:
                    raise RequestConflict(order.request_id)
                return self.views[f"run_{self.orders.index(known) + 1}"]
        if order.session_id is not None:
            raise NotFound("session", order.session_id)
        self.orders.append(order)
        view = RunView(
            run_id=f"run_{len(self.orders)}",
            principal=order.principal.name,
            request_id=order.request_id,
            state=RunState.RUNNING if self.hold else RunState.SUCCEEDED,
            query=order.query,
            context=None,
            settings=order.settings or RunSettings(),
            session_id=None,
            labels=order.labels,
            started_at=1000.0 + len(self.orders),
            ended_at=None if self.hold else 2000.0,
            answer=None if self.hold else "The gardener.",
            ending=None if self.hold else Ending.FINAL,
            problem=None,
            spent=Spent(calls=5),
            spent_by_model={"big": Spent(calls=5)},
            spent_by_depth={0: Spent(calls=5)},
            last_seq=self.script[-1].seq,
        )
        self.views[view.run_id] = view
        return view

    async def watch(
        self, run_id: str, after_seq: int = 0, with_pieces: bool = True, *, principal: Principal
    ) -> AsyncIterator[Record | Missed]:
        view = await self.get(run_id, principal=principal)
        self.watchers += 1
        self.watching.set()
        try:
            for record in self.script:
                if record.seq <= after_seq:
                    continue
                if self.missed and self.missed.first_seq <= record.seq <= self.missed.last_seq:
                    if record.seq == self.missed.last_seq:
                        missed, self.missed = self.missed, None
                        yield missed
                    continue
                yield record
            async with self.ended:
                await self.ended.wait_for(lambda: self.views[view.run_id].state is not RunState.RUNNING)
        finally:
            self.watchers -= 1
            self.watched_to_end.set()

    async def get(self, run_id: str, *, principal: Principal) -> RunView:
        self._fail()
        view = self.views.get(run_id)
        if view is None or not principal.may_see(view.principal):
            raise NotFound("run", run_id)
        return view

    async def list(self, query: RunQuery, *, principal: Principal) -> Page[RunView]:
        if query.page_token and not query.page_token.isdecimal():
            raise InvalidInput("page_token", "is not one of ours.")
        seen = [each for each in reversed(self.views.values()) if principal.may_see(each.principal)]
        if query.states:
            seen = [each for each in seen if each.state in query.states]
        start = int(query.page_token or 0)
        end = start + query.page_size
        return Page(tuple(seen[start:end]), str(end) if end < len(seen) else "")

    async def cancel(self, run_id: str, *, principal: Principal) -> RunView:
        view = await self.get(run_id, principal=principal)
        if view.state is RunState.RUNNING:
            await self.end(run_id, state=RunState.CANCELLED, problem=RunProblem("CANCELLED", "the run was cancelled"))
        return self.views[run_id]

    async def end(self, run_id: str, **changes: Any) -> None:
        async with self.ended:
            self.views[run_id] = replace(self.views[run_id], ended_at=2000.0, **changes)
            self.ended.notify_all()

    async def delete(self, run_id: str, *, principal: Principal) -> None:
        if (await self.get(run_id, principal=principal)).state is RunState.RUNNING:
            raise Busy("the run goes on.", "Cancel it first.")
        del self.views[run_id]

    async def upload(self, header: ContextHeader, chunks: AsyncIterator[bytes], *, principal: Principal) -> ContextView:
        data = b""
        async for chunk in chunks:
            data += chunk
            if len(data) > self.most_bytes:
                raise TooLarge("max_upload_bytes", self.most_bytes, len(data))
        if len(data) != header.size_bytes or hashlib.sha256(data).digest() != header.sha256:
            raise InvalidInput("header", "is not of these bytes.")
        identifier = f"ctx_{header.sha256.hex()[:8]}"
        self.blobs[identifier] = data
        info = ContextInfo(header.kind, "str", len(data), len(data), "characters", "", "")
        return ContextView(context_id=identifier, info=info, uploaded_at=1.0)

    async def contexts(self, page_size: int = 50, page_token: str = "", *, principal: Principal) -> Page[ContextView]:
        return Page(())

    async def delete_context(self, context_id: str, *, principal: Principal) -> None:
        if self.blobs.pop(context_id, None) is None:
            raise NotFound("context", context_id)

    async def add_session_context(
        self, session_id: str, context_id: str, variable: str, *, principal: Principal
    ) -> None:
        raise NotFound("session", session_id)

    def sessions(self, *, principal: Principal) -> tuple[SessionView, ...]:
        return (SessionView(session_id="ses_1", run_id="run_1", busy=False, expires_at=5.0, turns=1),)

    async def close_session(self, session_id: str, *, principal: Principal) -> None:
        raise NotFound("session", session_id)

    async def drain(self, grace_s: float) -> None:
        self.draining = True
        self.drained_with.append(grace_s)
        for run_id, view in self.views.items():
            if view.state is RunState.RUNNING:
                await self.end(run_id, state=RunState.CANCELLED, problem=RunProblem("CANCELLED", "shut down"))

    def _fail(self) -> None:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault


@dataclass
class FakeSandboxes:
    """A cell gives `output`, and then its result, unless `hold` is set: then it runs until it is interrupted."""

    output: list[OutputChunk] = field(default_factory=list)
    result: CellResult | None = None
    hold: bool = False
    fault: BaseException | None = None
    orders: list[SandboxOrder] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    codes: list[tuple[str, float | None]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def create(self, order: SandboxOrder) -> SandboxView:
        if self.fault is not None:
            raise self.fault
        self.orders.append(order)
        identifier = f"box_{len(self.orders)}"
        self.alive.add(identifier)
        return self._view(identifier)

    async def run_cell(
        self, sandbox_id: str, code: str, time_limit_s: float | None = None, *, principal: Principal
    ) -> AsyncIterator[OutputChunk | CellResult]:
        self._known(sandbox_id)
        self.codes.append((code, time_limit_s))
        try:
            for chunk in self.output:
                yield chunk
            if self.hold:
                await self.interrupted.wait()
            assert self.result is not None
            yield self.result
        finally:
            self.closed.set()

    async def interrupt(self, sandbox_id: str, *, principal: Principal) -> None:
        self._known(sandbox_id)
        self.interrupted.set()

    async def write_file(self, sandbox_id: str, path: str, data: bytes, *, principal: Principal) -> None:
        self._known(sandbox_id)
        self.files[path] = data

    async def read_file(self, sandbox_id: str, path: str, *, principal: Principal) -> bytes:
        self._known(sandbox_id)
        return self.files[path]

    async def get(self, sandbox_id: str, *, principal: Principal) -> SandboxView:
        return self._view(self._known(sandbox_id))

    async def list(self, page_size: int = 50, page_token: str = "", *, principal: Principal) -> Page[SandboxView]:
        return Page(tuple(self._view(each) for each in sorted(self.alive)))

    async def delete(self, sandbox_id: str, *, principal: Principal) -> None:
        self.alive.discard(self._known(sandbox_id))

    async def drain(self, grace_s: float) -> None:
        self.alive.clear()

    def _known(self, sandbox_id: str) -> str:
        if sandbox_id not in self.alive:
            raise NotFound("sandbox", sandbox_id)
        return sandbox_id

    def _view(self, identifier: str) -> SandboxView:
        return SandboxView(
            sandbox_id=identifier, busy=False, created_at=1.0, expires_at=2.0, cells=0, spent=Spent(), labels={}
        )


def notice(seq: int) -> Record:
    return Record(seq, 1000.0, 1, None, SpanKind.RUN, 0, NoticeGiven(f"notice {seq}"))


INFO = server_pb2.GetServerInfoResponse(version="1.2.3", capacity=4)


@asynccontextmanager
async def fake_server(
    folder: Path, runs: FakeRuns | None = None, sandboxes: FakeSandboxes | None = None, **settings: Any
) -> AsyncIterator[Listening]:
    """The real gRPC server on a socket in this folder (or at the `addresses` given), before fake desks."""
    listen = ListenSettings(**{"addresses": (UnixAddress(folder / "s"),), "stop_grace_s": 0.0, **settings})
    desks = cast("RunDesk", runs or FakeRuns()), cast("SandboxDesk", sandboxes or FakeSandboxes())
    async with listening(*desks, INFO, listen) as listener:
        yield listener
