"""`rlm.v1.SandboxService` and `rlm.v1.ServerService`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from orchestrator.errors import FileFailed, FileFailure
from orchestrator.hosting.sandbox_desk import SandboxDesk
from orchestrator.protocol.rlm.v1 import sandbox_pb2, sandbox_pb2_grpc, server_pb2, server_pb2_grpc
from orchestrator.server import orders
from orchestrator.server.calls import caller, trace_context
from orchestrator.values import CellResult
from orchestrator.wire.caps import MAX_FILE_BYTES
from orchestrator.wire.records import chunk_message, result_message
from orchestrator.wire.views import sandbox_message


class SandboxService(sandbox_pb2_grpc.SandboxServiceServicer):
    def __init__(self, desk: SandboxDesk) -> None:
        self._desk = desk

    async def CreateSandbox(
        self, request: sandbox_pb2.CreateSandboxRequest, context: Any
    ) -> sandbox_pb2.CreateSandboxResponse:
        view = await self._desk.create(orders.sandbox_order(request, caller(), trace_context(context)))
        return sandbox_pb2.CreateSandboxResponse(sandbox=sandbox_message(view))

    async def RunCell(
        self, request: sandbox_pb2.RunCellRequest, context: Any
    ) -> AsyncIterator[sandbox_pb2.RunCellResponse]:
        limit_s = orders.time_limit(request)
        items = self._desk.run_cell(request.sandbox_id, request.code, limit_s, principal=caller())
        async with aclosing(orders.closable(items)) as output:
            async for item in output:
                if isinstance(item, CellResult):
                    yield sandbox_pb2.RunCellResponse(result=result_message(item))
                else:
                    yield sandbox_pb2.RunCellResponse(printed=chunk_message(item))

    async def InterruptCell(
        self, request: sandbox_pb2.InterruptCellRequest, context: Any
    ) -> sandbox_pb2.InterruptCellResponse:
        await self._desk.interrupt(request.sandbox_id, principal=caller())
        return sandbox_pb2.InterruptCellResponse()

    async def WriteFile(self, request: sandbox_pb2.WriteFileRequest, context: Any) -> sandbox_pb2.WriteFileResponse:
        if len(request.data) > MAX_FILE_BYTES:
            raise FileFailed(
                FileFailure.TOO_LARGE, request.path, f"{len(request.data):,} bytes, and {MAX_FILE_BYTES:,} is the most."
            )
        await self._desk.write_file(request.sandbox_id, request.path, request.data, principal=caller())
        return sandbox_pb2.WriteFileResponse()

    async def ReadFile(self, request: sandbox_pb2.ReadFileRequest, context: Any) -> sandbox_pb2.ReadFileResponse:
        data = await self._desk.read_file(request.sandbox_id, request.path, principal=caller())
        return sandbox_pb2.ReadFileResponse(data=data)

    async def GetSandbox(self, request: sandbox_pb2.GetSandboxRequest, context: Any) -> sandbox_pb2.GetSandboxResponse:
        view = await self._desk.get(request.sandbox_id, principal=caller())
        return sandbox_pb2.GetSandboxResponse(sandbox=sandbox_message(view))

    async def ListSandboxes(
        self, request: sandbox_pb2.ListSandboxesRequest, context: Any
    ) -> sandbox_pb2.ListSandboxesResponse:
        size = orders.page_size(request.page_size)
        page = await self._desk.list(size, request.page_token, principal=caller())
        return sandbox_pb2.ListSandboxesResponse(
            sandboxes=map(sandbox_message, page.items), next_page_token=page.next_token
        )

    async def DeleteSandbox(
        self, request: sandbox_pb2.DeleteSandboxRequest, context: Any
    ) -> sandbox_pb2.DeleteSandboxResponse:
        await self._desk.delete(request.sandbox_id, principal=caller())
        return sandbox_pb2.DeleteSandboxResponse()


class ServerService(server_pb2_grpc.ServerServiceServicer):
    """`weaknesses` are those that have been found by now; all else is the same as long as the server lives."""

    def __init__(
        self, info: server_pb2.GetServerInfoResponse, weaknesses: Callable[[], Iterable[str]] = lambda: ()
    ) -> None:
        self._info = info
        self._weaknesses = weaknesses

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: Any
    ) -> server_pb2.GetServerInfoResponse:
        found = server_pb2.GetServerInfoResponse(weaknesses=self._weaknesses())
        found.MergeFrom(self._info)
        return found
