"""Numbers at their ends, in every field of every public request: a clear status, and nothing that others then feel.

The fields come from the descriptors, so that a new one is tried as well.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from orchestrator.protocol.rlm.v1 import run_pb2, run_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc, server_pb2
from orchestrator.server.listening import ListenSettings, listening
from orchestrator.server.tokens import Entry, Tokens, hash_of
from orchestrator.wire.addresses import TcpAddress
from tests.unit.hosting_world import ADMIN, House, house
from tests.unit.rlm_world import code, is_leaf

TOKEN = (("authorization", "Bearer right"),)
QUOTA_USD = 5.0
_SERVICES = (run_pb2.DESCRIPTOR.services_by_name, sandbox_pb2.DESCRIPTOR.services_by_name)
METHODS: list[MethodDescriptor] = [
    method for services in _SERVICES for service in services.values() for method in service.methods
]
ENDS: dict[int, tuple[float, ...]] = {
    FieldDescriptor.CPPTYPE_UINT32: (2**31 - 1, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), -1, 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), -1, 2**40, 400_000_000_000, 2**62, 2**63 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: (math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1e308),
    FieldDescriptor.CPPTYPE_ENUM: (-1, 99, 2**31 - 1),
}
Path_ = tuple[FieldDescriptor, ...]


def numbers(message: Descriptor, above: Path_ = ()) -> Iterator[Path_]:
    """The ways to each number of a message."""
    for field in message.fields:
        if field.message_type is not None:
            if not field.message_type.GetOptions().map_entry:
                yield from numbers(field.message_type, (*above, field))
        elif field.cpp_type in ENDS:
            yield (*above, field)


def put(message: Any, way: Path_, value: float) -> None:
    for field in way[:-1]:
        message = getattr(message, field.name)
    last = way[-1]
    if last.is_repeated:
        getattr(message, last.name).append(value)
    else:
        setattr(message, last.name, value)


def cases() -> list[Any]:
    return [
        pytest.param(method, way, id=f"{method.name}-{'.'.join(field.name for field in way)}")
        for method in METHODS
        for way in numbers(method.input_type)
    ]


class Served:
    def __init__(self, desk: House, channel: grpc.aio.Channel, run_id: str, sandbox_id: str) -> None:
        self.desk = desk
        self.channel = channel
        self.runs: Any = run_pb2_grpc.RunServiceStub(channel)
        self.sandboxes: Any = sandbox_pb2_grpc.SandboxServiceStub(channel)
        self.known = {"run_id": run_id, "sandbox_id": sandbox_id, "query": "q", "code": "1"}

    def request(self, method: MethodDescriptor) -> Message:
        """One that would be taken."""
        request = message_factory.GetMessageClass(method.input_type)()
        for field in method.input_type.fields:
            if field.name in self.known:
                setattr(request, field.name, self.known[field.name])
        if isinstance(request, sandbox_pb2.CreateSandboxRequest):
            request.model.model = "m"
        return request

    async def code(self, method: MethodDescriptor, request: Message) -> grpc.StatusCode:
        path = f"/{method.containing_service.full_name}/{method.name}"
        multi = getattr(self.channel, f"{_kind(method.client_streaming)}_{_kind(method.server_streaming)}")
        answer = message_factory.GetMessageClass(method.output_type)
        call = multi(path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString)
        given = iter([request]) if method.client_streaming else request
        calling = call(given, metadata=TOKEN, timeout=20)
        try:
            if method.server_streaming:
                async for _ in calling:
                    pass
            else:
                response = await calling
                if isinstance(response, sandbox_pb2.CreateSandboxResponse):
                    await self.spend(response.sandbox.sandbox_id)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def spend(self, sandbox_id: str) -> None:
        """Asks for more than the quota allows, and deletes it."""
        request = sandbox_pb2.RunCellRequest(sandbox_id=sandbox_id, code=f"llm_query('x' * {int(QUOTA_USD) * 8000})")
        async for _ in self.sandboxes.RunCell(request, metadata=TOKEN):
            pass
        await self.sandboxes.DeleteSandbox(sandbox_pb2.DeleteSandboxRequest(sandbox_id=sandbox_id), metadata=TOKEN)


def _kind(streaming: bool) -> str:
    return "stream" if streaming else "unary"


@asynccontextmanager
async def service(tmp_path: Path) -> AsyncIterator[Served]:
    async with house(tmp_path, lambda asked: "leaf" if is_leaf(asked) else code("FINAL('x')")) as desk:
        tokens = Tokens([Entry("alice", hash_of("right"), max_cost_usd=QUOTA_USD)])
        settings = ListenSettings(addresses=(TcpAddress("127.0.0.1", 0),), tokens=tokens, stop_grace_s=0.0)
        info = server_pb2.GetServerInfoResponse()
        async with (
            listening(desk.runs, desk.sandboxes, info, settings) as listener,
            grpc.aio.insecure_channel(str(listener.addresses[0])) as channel,
        ):
            run = await desk.ask()
            made = Served(desk, channel, run.run_id, "")
            created = await made.sandboxes.CreateSandbox(sandbox_pb2.CreateSandboxRequest(), metadata=TOKEN)
            made.known["sandbox_id"] = created.sandbox.sandbox_id
            yield made


@pytest.mark.parametrize(("method", "way"), cases())
async def test_a_number_at_its_end_is_taken_or_refused(tmp_path: Path, method: MethodDescriptor, way: Path_) -> None:
    async with service(tmp_path) as served:
        for value in ENDS[way[-1].cpp_type]:
            await _try(served, method, way, value)


async def _try(served: Served, method: MethodDescriptor, way: Path_, value: float) -> None:
    request = served.request(method)
    put(request, way, value)
    found = await served.code(method, request)
    assert found not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), value
    # Whatever it was, others see their lists, and nobody has spent more than they may.
    listed = await served.runs.ListRuns(run_pb2.ListRunsRequest(), metadata=TOKEN)
    assert served.known["run_id"] in {run.run_id for run in listed.runs}
    if found is not grpc.StatusCode.OK and method.name == "StartRun":
        assert len(listed.runs) == 1  # refused is not started
    for run in listed.runs:
        await served.desk.ended(await served.desk.runs.get(run.run_id, principal=ADMIN))
        if run.run_id != served.known["run_id"]:
            await served.runs.DeleteRun(run_pb2.DeleteRunRequest(run_id=run.run_id), metadata=TOKEN)
    assert (await served.desk.runs.premises.account_of("alice")).cost_usd <= QUOTA_USD
