"""A guest without a container, and an engine that starts such guests: real sockets and real gRPC, no Docker."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path

import grpc
import grpc.aio

from orchestrator.errors import SandboxUnavailable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.protocol.rlm.guest.v1 import guest_pb2_grpc as pb_grpc
from orchestrator.sandbox.engine import (
    OWNER_LABEL,
    STATE_LABEL,
    ContainerExit,
    ContainerSpec,
    EngineInfo,
    OwnedContainer,
)
from orchestrator.sandbox.wire import PROTOCOL_VERSION

Behavior = Callable[["ScriptedGuest", pb.RunCell], Coroutine[None, None, None]]
HELLO = pb.AttachRequest(hello=pb.Hello(protocol_version=PROTOCOL_VERSION, python_version="3.11.2"))


def ended(cell: int, status: pb.CellStatus.ValueType = pb.CELL_STATUS_OK, **fields: object) -> pb.AttachRequest:
    return pb.AttachRequest(cell_ended=pb.CellEnded(cell=cell, status=status, **fields))  # type: ignore[arg-type]


def output(
    cell: int, offset: int, data: bytes, stream: pb.OutputStream.ValueType = pb.OUTPUT_STREAM_STDOUT
) -> pb.AttachRequest:
    return pb.AttachRequest(output=pb.Output(cell=cell, stream=stream, offset=offset, data=data))


def stopping(cell: int) -> pb.AttachRequest:
    return pb.AttachRequest(stopping=pb.Stopping(cell=cell))


def time_check(cell: int) -> pb.AttachRequest:
    return pb.AttachRequest(time_check=pb.TimeCheck(cell=cell))


async def echo(guest: ScriptedGuest, cell: pb.RunCell) -> None:
    """Prints the code."""
    data = cell.code.encode()
    if data:
        await guest.send(output(cell.cell, 0, data))
    await guest.send(ended(cell.cell, stdout_bytes=len(data)))


class ScriptedGuest:
    """Dials a socket as the real guest does; what it does with a cell is up to the test."""

    def __init__(self, socket: Path, behavior: Behavior = echo, hello: pb.AttachRequest = HELLO) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"unix:{socket}", options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        )
        self.stub = pb_grpc.GuestServiceStub(self.channel)
        self._behavior = behavior
        self._hello = hello
        self._call: grpc.aio.StreamStreamCall[pb.AttachRequest, pb.AttachResponse] | None = None
        self._cells: set[asyncio.Task[None]] = set()
        self.opens: list[pb.Open] = []
        self.interrupts: asyncio.Queue[int] = asyncio.Queue()
        self.waited: asyncio.Queue[pb.Waited] = asyncio.Queue()
        self.running = asyncio.Event()  # a cell has come

    async def attach(self) -> None:
        self._call = self.stub.Attach()
        await self.send(self._hello)

    async def send(self, message: pb.AttachRequest) -> None:
        assert self._call is not None
        await self._call.write(message)

    async def live(self) -> grpc.StatusCode:
        """Answers the host until it ends the stream; returns the stream's status."""
        assert self._call is not None
        try:
            async for message in self._call:
                await self._answer(message)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return await self._call.code()

    async def hang_up(self) -> None:
        assert self._call is not None
        self._call.cancel()

    async def close(self) -> None:
        for task in self._cells:
            task.cancel()
        await asyncio.gather(*self._cells, return_exceptions=True)
        await self.channel.close()

    async def _answer(self, message: pb.AttachResponse) -> None:
        match message.WhichOneof("message"):
            case "open":
                self.opens.append(message.open)
                await self.send(pb.AttachRequest(opened=pb.Opened()))
            case "run_cell":
                self.running.set()
                task = asyncio.create_task(self._behavior(self, message.run_cell))
                self._cells.add(task)
                task.add_done_callback(self._cells.discard)
            case "interrupt":
                self.interrupts.put_nowait(message.interrupt.cell)
            case "waited":
                self.waited.put_nowait(message.waited)


class FakeEngine:
    """An `Engine` whose containers are scripted guests in this process."""

    def __init__(self, behavior: Behavior = echo) -> None:
        self._behavior = behavior
        self.specs: dict[str, ContainerSpec] = {}
        self.strays: dict[str, OwnedContainer] = {}
        self.started = 0
        self.destroyed: list[str] = []
        self.fail_starts = 0  # so many of the next starts fail
        self.exit_code: int | None = None  # set: containers end with it instead of attaching
        self.starting = asyncio.Event()
        self._changed = asyncio.Condition()
        self.start_gate = asyncio.Event()
        self.start_gate.set()
        self._guests: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count()

    async def info(self) -> EngineInfo:
        return EngineInfo("fake", "0", "2", (), "", (), "")

    async def resolve_image(self, image: str) -> str:
        return f"sha256:{image}"

    async def start(self, spec: ContainerSpec) -> None:
        self.specs[spec.name] = spec
        self.starting.set()
        await self.start_gate.wait()
        if self.fail_starts:
            self.fail_starts -= 1
            raise SandboxUnavailable("told to fail")
        self.started += 1
        if self.exit_code is None:
            self._guests[spec.name] = asyncio.create_task(self._live(spec))

    async def wait_exit(self, name: str, timeout_s: float) -> ContainerExit | None:
        if self.exit_code is not None:
            return ContainerExit(self.exit_code, False)
        guest = self._guests.get(name)
        if guest is not None:
            await asyncio.wait({guest}, timeout=timeout_s)
        return ContainerExit(1, False) if guest is None or guest.done() else None

    async def destroy(self, name: str) -> None:
        self.destroyed.append(name)
        async with self._changed:
            self._changed.notify_all()
        self.specs.pop(name, None)
        self.strays.pop(name, None)
        guest = self._guests.pop(name, None)
        if guest is not None:
            guest.cancel()
            await asyncio.wait({guest})

    async def owned(self, state_id: str) -> list[OwnedContainer]:
        mine = [
            OwnedContainer(name, spec.labels[OWNER_LABEL], True)
            for name, spec in self.specs.items()
            if spec.labels[STATE_LABEL] == state_id
        ]
        return [*mine, *self.strays.values()]

    async def close(self) -> None:
        pass

    async def removed(self, name: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: name in self.destroyed)

    def alive(self, name: str) -> bool:
        return not self._guests[name].done()

    def kill(self, name: str) -> None:
        self._guests[name].cancel()

    async def _live(self, spec: ContainerSpec) -> None:
        guest = ScriptedGuest(spec.directory / Path(spec.environment["RLM_ADDRESS"]).name, self._behavior)
        try:
            await guest.attach()
            await guest.live()
        finally:
            await guest.close()
