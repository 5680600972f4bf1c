"""Sandboxes of a server: `Sandboxes`, call by call, and `RemoteSandbox`, one that is open."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from orchestrator.client.calls import Client
from orchestrator.errors import LossCause, NotFound, SandboxLost, ServiceFailed, ServiceFailure
from orchestrator.protocol.rlm.v1 import sandbox_pb2, sandbox_pb2_grpc
from orchestrator.seams import OutputSink
from orchestrator.values import CellResult, Limits
from orchestrator.views import Page, SandboxView
from orchestrator.wire.records import chunk_value, result_value
from orchestrator.wire.structs import UnknownWord, fill
from orchestrator.wire.times import write_duration
from orchestrator.wire.views import sandbox_value

_OPEN_TIMEOUT_S = 600.0  # it may wait for room


class Sandboxes:
    """The calls of `SandboxService`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(
        self,
        context: object = None,
        *,
        model: str | None = None,
        limits: Limits | None = None,
        idle_timeout_s: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> SandboxView:
        request = sandbox_pb2.CreateSandboxRequest(request_id=secrets.token_hex(16), labels=labels or {})
        if context is not None:
            await self._client.put_context(request, context)
        if model is not None:
            request.model.model = model
            fill(request.model.limits, limits or Limits())
        if idle_timeout_s is not None:
            write_duration(request.idle_timeout, idle_timeout_s)
        call = self._stub.CreateSandbox
        response = await self._client.connection.unary(call, request, _OPEN_TIMEOUT_S, again=True)
        return sandbox_value(response.sandbox)

    async def run_cell(
        self, sandbox_id: str, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        """Cancelling it interrupts the cell. Never sent twice: the code may have run."""
        request = sandbox_pb2.RunCellRequest(sandbox_id=sandbox_id, code=code)
        if time_limit_s is not None:
            write_duration(request.time_limit, time_limit_s)
        call = self._client.connection.stream(self._stub.RunCell, request)
        try:
            async for response in call:
                if response.WhichOneof("item") == "result":
                    return result_value(response.result)
                chunk = chunk_value(response.printed)
                if chunk is not None and on_output is not None:
                    on_output(chunk)
        except grpc.aio.AioRpcError as error:
            raise self._client.connection.renamed(error) from error
        except UnknownWord as error:
            raise ServiceFailed(
                ServiceFailure.UNSUPPORTED, f"the server is of a newer release: {error}.", "Update this client."
            ) from error
        finally:
            call.cancel()  # type: ignore[attr-defined]
        raise SandboxLost(sandbox_id, LossCause.PROTOCOL, "the server ended the cell without a result")

    async def interrupt(self, sandbox_id: str) -> None:
        await self._ask(self._stub.InterruptCell, sandbox_pb2.InterruptCellRequest(sandbox_id=sandbox_id))

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> None:
        await self._ask(self._stub.WriteFile, sandbox_pb2.WriteFileRequest(sandbox_id=sandbox_id, path=path, data=data))

    async def read_file(self, sandbox_id: str, path: str) -> bytes:
        response = await self._ask(self._stub.ReadFile, sandbox_pb2.ReadFileRequest(sandbox_id=sandbox_id, path=path))
        data: bytes = response.data
        return data

    async def get(self, sandbox_id: str) -> SandboxView:
        request = sandbox_pb2.GetSandboxRequest(sandbox_id=sandbox_id)
        return sandbox_value((await self._ask(self._stub.GetSandbox, request, again=True)).sandbox)

    async def list(self, page_size: int = 0, page_token: str = "") -> Page[SandboxView]:
        request = sandbox_pb2.ListSandboxesRequest(page_size=page_size, page_token=page_token)
        response = await self._ask(self._stub.ListSandboxes, request, again=True)
        return Page(tuple(sandbox_value(each) for each in response.sandboxes), response.next_page_token)

    async def delete(self, sandbox_id: str) -> None:
        await self._ask(self._stub.DeleteSandbox, sandbox_pb2.DeleteSandboxRequest(sandbox_id=sandbox_id))

    @property
    def _stub(self) -> Any:
        return sandbox_pb2_grpc.SandboxServiceStub(self._client.connection.channel)

    async def _ask(self, call: Any, request: Any, *, again: bool = False) -> Any:
        return await self._client.connection.unary(call, request, self._client.timeout_s, again=again)


class RemoteSandbox:
    """A sandbox of a server, as `seams.Sandbox`, and with its files."""

    def __init__(self, sandboxes: Sandboxes, sandbox_id: str) -> None:
        self._sandboxes = sandboxes
        self.name = sandbox_id
        self.warm = False  # the server does not say

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        return await self._sandboxes.run_cell(self.name, code, on_output, time_limit_s=time_limit_s)

    async def interrupt(self) -> None:
        await self._sandboxes.interrupt(self.name)

    async def write_file(self, path: str, data: bytes) -> None:
        await self._sandboxes.write_file(self.name, path, data)

    async def read_file(self, path: str) -> bytes:
        return await self._sandboxes.read_file(self.name, path)


@asynccontextmanager
async def open_sandbox(client: Client, context: object = None, **order: Any) -> AsyncIterator[RemoteSandbox]:
    """A sandbox for the block; `order` is what `Sandboxes.create` takes. Deleted after it."""
    sandboxes = Sandboxes(client)
    view = await sandboxes.create(context, **order)
    try:
        yield RemoteSandbox(sandboxes, view.sandbox_id)
    finally:
        try:
            await sandboxes.delete(view.sandbox_id)
        except NotFound:
            pass  # it was lost, or idle for too long
