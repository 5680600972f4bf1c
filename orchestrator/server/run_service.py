"""`rlm.v1.RunService`: messages in, the desk's work, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from orchestrator.errors import InvalidInput, ServiceFailed, ServiceFailure
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.protocol.rlm.v1 import run_pb2, run_pb2_grpc
from orchestrator.server import orders
from orchestrator.server.calls import caller, trace_context
from orchestrator.views import Missed
from orchestrator.wire.records import record_message
from orchestrator.wire.views import context_message, run_message, session_message

Part = TypeVar("Part", run_pb2.UploadContextRequest, run_pb2.ImportRunRequest)


class RunService(run_pb2_grpc.RunServiceServicer):
    def __init__(self, desk: RunDesk, upload_idle_s: float) -> None:
        self._desk = desk
        self._upload_idle_s = upload_idle_s

    async def StartRun(self, request: run_pb2.StartRunRequest, context: Any) -> run_pb2.StartRunResponse:
        view = await self._desk.start(orders.run_order(request, self._desk, caller(), trace_context(context)))
        return run_pb2.StartRunResponse(run=run_message(view))

    async def WatchRun(self, request: run_pb2.WatchRunRequest, context: Any) -> AsyncIterator[run_pb2.WatchRunResponse]:
        after, pieces = orders.after_seq(request), not request.without_pieces
        items = self._desk.watch(request.run_id, after, pieces, principal=caller())
        async with aclosing(orders.closable(items)) as watched:
            async for item in watched:
                if isinstance(item, Missed):
                    missed = run_pb2.Missed(first_seq=item.first_seq, last_seq=item.last_seq)
                    yield run_pb2.WatchRunResponse(missed=missed)
                else:
                    yield run_pb2.WatchRunResponse(record=record_message(item))

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Any) -> run_pb2.GetRunResponse:
        return run_pb2.GetRunResponse(run=run_message(await self._desk.get(request.run_id, principal=caller())))

    async def ListRuns(self, request: run_pb2.ListRunsRequest, context: Any) -> run_pb2.ListRunsResponse:
        page = await self._desk.list(orders.run_query(request), principal=caller())
        return run_pb2.ListRunsResponse(runs=map(run_message, page.items), next_page_token=page.next_token)

    async def CancelRun(self, request: run_pb2.CancelRunRequest, context: Any) -> run_pb2.CancelRunResponse:
        return run_pb2.CancelRunResponse(run=run_message(await self._desk.cancel(request.run_id, principal=caller())))

    async def DeleteRun(self, request: run_pb2.DeleteRunRequest, context: Any) -> run_pb2.DeleteRunResponse:
        await self._desk.delete(request.run_id, principal=caller())
        return run_pb2.DeleteRunResponse()

    async def UploadContext(
        self, request_iterator: AsyncIterator[run_pb2.UploadContextRequest], context: Any
    ) -> run_pb2.UploadContextResponse:
        parts = aiter(request_iterator)
        first = await self._next(parts)
        if first is None:
            raise InvalidInput("header", "is missing.", "Send it first, and then the chunks.")
        chunks = self._chunks(parts)
        async with aclosing(chunks):
            view = await self._desk.upload(orders.header_of(first), chunks, principal=caller())
        return run_pb2.UploadContextResponse(context=context_message(view))

    async def ImportRun(
        self, request_iterator: AsyncIterator[run_pb2.ImportRunRequest], context: Any
    ) -> run_pb2.ImportRunResponse:
        chunks = self._chunks(aiter(request_iterator))
        async with aclosing(chunks):
            view = await self._desk.import_run(chunks, principal=caller())
        return run_pb2.ImportRunResponse(run=run_message(view))

    async def _chunks(self, parts: AsyncIterator[Part]) -> Any:
        while (part := await self._next(parts)) is not None:
            yield orders.chunk_of(part)

    async def _next(self, parts: AsyncIterator[Part]) -> Part | None:
        """None at the end. A client that has gone silent must not hold a file open for ever."""
        try:
            async with asyncio.timeout(self._upload_idle_s):
                return await anext(parts, None)
        except TimeoutError:
            raise ServiceFailed(
                ServiceFailure.TIMED_OUT, f"no part of the upload came for {self._upload_idle_s:g} s.", "Try again."
            ) from None

    async def ListContexts(self, request: run_pb2.ListContextsRequest, context: Any) -> run_pb2.ListContextsResponse:
        size = orders.page_size(request.page_size)
        page = await self._desk.contexts(size, request.page_token, principal=caller())
        return run_pb2.ListContextsResponse(contexts=map(context_message, page.items), next_page_token=page.next_token)

    async def DeleteContext(self, request: run_pb2.DeleteContextRequest, context: Any) -> run_pb2.DeleteContextResponse:
        await self._desk.delete_context(request.context_id, principal=caller())
        return run_pb2.DeleteContextResponse()

    async def AddSessionContext(
        self, request: run_pb2.AddSessionContextRequest, context: Any
    ) -> run_pb2.AddSessionContextResponse:
        await self._desk.add_session_context(
            request.session_id, request.context_id, request.variable, principal=caller()
        )
        return run_pb2.AddSessionContextResponse()

    async def ListSessions(self, request: run_pb2.ListSessionsRequest, context: Any) -> run_pb2.ListSessionsResponse:
        return run_pb2.ListSessionsResponse(sessions=map(session_message, self._desk.sessions(principal=caller())))

    async def CloseSession(self, request: run_pb2.CloseSessionRequest, context: Any) -> run_pb2.CloseSessionResponse:
        await self._desk.close_session(request.session_id, principal=caller())
        return run_pb2.CloseSessionResponse()
