"""`Client`: the calls of the public services, in values of this package.

What may be sent twice is sent again while the server cannot be reached: a start (by its request id), whatever only
reads, a watch (from the last record seen), an upload (from its start). A cell never is: its code may have run.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc.aio

from orchestrator.client.connection import Connection
from orchestrator.client.contexts import Content, content_of
from orchestrator.errors import InvalidInput, RLMError, ServiceFailed, ServiceFailure
from orchestrator.events import Record
from orchestrator.protocol.rlm.v1 import events_pb2, run_pb2, run_pb2_grpc, server_pb2, server_pb2_grpc
from orchestrator.values import ContextKind
from orchestrator.views import ContextView, Page, RunState, RunView, SessionView
from orchestrator.wire.caps import CHUNK_BYTES, INLINE_BYTES
from orchestrator.wire.records import record_value
from orchestrator.wire.settings import settings_message
from orchestrator.wire.structs import clean, enum_tables
from orchestrator.wire.times import write_duration, write_time
from orchestrator.wire.views import context_value, run_value, session_value, state_numbers

_KIND_NUMBERS, _ = enum_tables(ContextKind, events_pb2.ContextKind.DESCRIPTOR)


class Client:
    """Runs of a server. An async context manager; belongs to the event loop in which it is used.

    `server` is unix:/path or host:port (see `Connection`), `token` what `rlm token new` printed, `timeout_s` the
    deadline of each call that is not a stream, `retry_s` for how long calls are sent again that may be.

    Every method raises the errors of `orchestrator.errors`; `ServiceFailed` when the server cannot be asked.
    """

    def __init__(
        self,
        server: str,
        token: str | None = None,
        *,
        ca: Path | str | None = None,
        timeout_s: float = 60.0,
        retry_s: float = 20.0,
    ) -> None:
        self.connection = Connection(server, token, Path(ca) if ca is not None else None, retry_s)
        self.timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.connection.close()

    async def info(self, *, again: bool = True) -> server_pb2.GetServerInfoResponse:
        """What the server is. `again` False: it must answer now."""
        stub: Any = server_pb2_grpc.ServerServiceStub(self.connection.channel)
        found: server_pb2.GetServerInfoResponse = await self._ask(
            stub.GetServerInfo, server_pb2.GetServerInfoRequest(), again=again
        )
        return found

    # --- runs --------------------------------------------------------------------------------------------------------

    async def start(
        self,
        query: str,
        context: object = None,
        *,
        context_id: str | None = None,
        settings: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        keep_session_s: float = 0.0,
        labels: Mapping[str, str] | None = None,
    ) -> RunView:
        """Starts a run, which goes on whoever watches it. `settings` are names of `RunSettings` with their values.

        `context` is a str, bytes, a `Path` of a file, or what JSON can hold; a large one is uploaded first.
        """
        request = run_pb2.StartRunRequest(
            request_id=request_id or secrets.token_hex(16),
            query=clean(query),
            session_id=session_id or "",
            labels=labels or {},
        )
        if settings:
            request.settings.CopyFrom(settings_message(settings))
        if keep_session_s:
            write_duration(request.keep_session, keep_session_s)
        if context_id is not None:
            request.context_id = context_id
        elif context is not None:
            await self.put_context(request, context)
        response = await self._ask(self._stub.StartRun, request, again=True)
        return run_value(response.run)

    async def watch(self, run_id: str, after_seq: int = 0, with_pieces: bool = True) -> AsyncIterator[Record]:
        """The records of a run after this one, to its end: also over lost connections and a server's restart.

        What the server could not deliver in time is asked for again; only streamed pieces may be missing then.
        """
        seen, waits = after_seq, self.connection.waits()
        while True:
            request = run_pb2.WatchRunRequest(run_id=run_id, after_seq=seen, without_pieces=not with_pieces)
            call = self.connection.stream(self._stub.WatchRun, request)
            try:
                missed = False
                async for response in call:
                    if response.WhichOneof("item") == "missed":
                        missed = True
                        break
                    seen = max(seen, response.record.seq)
                    waits = self.connection.waits()
                    if (record := record_value(response.record)) is not None:
                        yield record
                if not missed:
                    return
            except grpc.aio.AioRpcError as error:
                if not await waits.wait(error):
                    raise self.connection.renamed(error) from error
            finally:
                call.cancel()  # type: ignore[attr-defined]

    async def get(self, run_id: str) -> RunView:
        response = await self._ask(self._stub.GetRun, run_pb2.GetRunRequest(run_id=run_id), again=True)
        return run_value(response.run)

    async def list(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        states: frozenset[RunState] = frozenset(),
        session_id: str | None = None,
        started_after: float | None = None,
        started_before: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Page[RunView]:
        """One page of the runs, the newest first. Times are seconds since the epoch."""
        request = run_pb2.ListRunsRequest(
            page_size=page_size, page_token=page_token, session_id=session_id or "", labels=labels or {}
        )
        request.states.extend(state_numbers(states))  # type: ignore[arg-type]
        if started_after is not None:
            write_time(request.started_after, started_after)
        if started_before is not None:
            write_time(request.started_before, started_before)
        response = await self._ask(self._stub.ListRuns, request, again=True)
        return Page(tuple(run_value(run) for run in response.runs), response.next_page_token)

    async def cancel(self, run_id: str) -> RunView:
        """Returns when its containers are gone; one that has ended stays as it is."""
        response = await self._ask(self._stub.CancelRun, run_pb2.CancelRunRequest(run_id=run_id), again=True)
        return run_value(response.run)

    async def delete(self, run_id: str) -> None:
        await self._ask(self._stub.DeleteRun, run_pb2.DeleteRunRequest(run_id=run_id), again=False)

    async def import_run(self, recording: Path) -> RunView:
        """Takes a recording in as a run of the server's. Raises `InvalidInput` for a file that cannot be read."""

        async def parts() -> AsyncIterator[run_pb2.ImportRunRequest]:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield run_pb2.ImportRunRequest(chunk=chunk)

        try:
            file = await asyncio.to_thread(recording.open, "rb")
        except OSError as error:
            raise InvalidInput(str(recording), f"cannot be read: {error.strerror}.") from error
        with file:

            async def once() -> Any:
                return await self._stub.ImportRun(parts(), metadata=self.connection.metadata)

            return run_value((await self.connection.retried(once, again=False)).run)

    # --- contexts ----------------------------------------------------------------------------------------------------

    async def upload(self, value: object) -> ContextView:
        """Stores a context for any number of runs. `value` is as in `start`."""
        return await self._upload(await asyncio.to_thread(content_of, value))

    async def contexts(self, page_size: int = 0, page_token: str = "") -> Page[ContextView]:
        request = run_pb2.ListContextsRequest(page_size=page_size, page_token=page_token)
        response = await self._ask(self._stub.ListContexts, request, again=True)
        return Page(tuple(context_value(each) for each in response.contexts), response.next_page_token)

    async def delete_context(self, context_id: str) -> None:
        request = run_pb2.DeleteContextRequest(context_id=context_id)
        await self._ask(self._stub.DeleteContext, request, again=False)

    async def put_context(self, request: Any, value: object) -> None:
        """Fills in the context of a request: itself when it is small, else as one that is uploaded now."""
        content = await asyncio.to_thread(content_of, value)
        if content.size_bytes > INLINE_BYTES // 2 or content.kind is ContextKind.BYTES:
            request.context_id = (await self._upload(content)).context_id
            return
        text = (await asyncio.to_thread(lambda: b"".join(content.chunks()))).decode()
        if content.kind is ContextKind.TEXT:
            request.text = text
        else:
            request.json = text

    async def _upload(self, content: Content) -> ContextView:
        header = run_pb2.ContextHeader(
            kind=_KIND_NUMBERS[content.kind],
            size_bytes=content.size_bytes,
            sha256=await asyncio.to_thread(content.sha256),
        )

        async def parts() -> AsyncIterator[run_pb2.UploadContextRequest]:
            yield run_pb2.UploadContextRequest(header=header)
            chunks = content.chunks()
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield run_pb2.UploadContextRequest(chunk=chunk)

        async def once() -> Any:
            # No deadline: how long it takes is up to its size. The server ends it when nothing comes.
            return await self._stub.UploadContext(parts(), metadata=self.connection.metadata)

        return context_value((await self.connection.retried(once)).context)

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def sessions(self) -> tuple[SessionView, ...]:
        response = await self._ask(self._stub.ListSessions, run_pb2.ListSessionsRequest(), again=True)
        return tuple(session_value(each) for each in response.sessions)

    async def add_session_context(self, session_id: str, context_id: str, variable: str) -> None:
        request = run_pb2.AddSessionContextRequest(session_id=session_id, context_id=context_id, variable=variable)
        await self._ask(self._stub.AddSessionContext, request, again=False)

    async def close_session(self, session_id: str) -> None:
        request = run_pb2.CloseSessionRequest(session_id=session_id)
        await self._ask(self._stub.CloseSession, request, again=False)

    @property
    def _stub(self) -> Any:
        return run_pb2_grpc.RunServiceStub(self.connection.channel)

    async def _ask(self, call: Any, request: Any, *, again: bool) -> Any:
        return await self.connection.unary(call, request, self.timeout_s, again=again)


def stopped(view: RunView) -> RLMError:
    """Why a run that has ended has no answer, as the library would raise it."""
    from orchestrator.wire.statuses import error_from

    if view.problem is None:
        return ServiceFailed(ServiceFailure.RUN_STOPPED, f"the run {view.run_id} is {view.state.value}.")
    return error_from(view.problem.reason, view.problem.message, view.problem.metadata)
