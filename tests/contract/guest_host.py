"""A small host for the guest: the server end of `GuestService` on a Unix socket, and a real agent dialing it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.protocol.rlm.guest.v1 import guest_pb2_grpc

GUEST = Path(__file__).parents[2] / "sandbox_image" / "guest"
MESSAGE_CAP = 64 << 20

Answer = Callable[[pb.AskRequest], Awaitable[pb.AskResponse]]


def texts(*answers: str) -> pb.AskResponse:
    """A response whose slots are all answers."""
    return pb.AskResponse(slots=[pb.Slot(text=answer) for answer in answers])


async def echo(request: pb.AskRequest) -> pb.AskResponse:
    """Answers each prompt with itself."""
    return texts(*(question.prompt for question in request.questions))


async def never(request: pb.AskRequest) -> pb.AskResponse:
    """Answers nothing, ever."""
    await asyncio.Event().wait()
    raise AssertionError


@dataclass
class Pieces:
    """What was received of one output stream, with its gaps."""

    data: bytes = b""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0

    def add(self, output: pb.Output) -> None:
        if output.offset != self.end:
            self.gaps.append((self.end, output.offset))
        self.data += output.data
        self.end = output.offset + len(output.data)


@dataclass(frozen=True)
class Ran:
    """One cell that has ended."""

    ended: pb.CellEnded
    out: Pieces
    err: Pieces
    outputs: int

    @property
    def status(self) -> str:
        return pb.CellStatus.Name(self.ended.status).removeprefix("CELL_STATUS_")

    @property
    def cause(self) -> str:
        return pb.DeathCause.Name(self.ended.worker_death.cause).removeprefix("DEATH_CAUSE_")

    @property
    def stdout(self) -> str:
        return self.out.data.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self.err.data.decode("utf-8", "replace")

    @property
    def final(self) -> str | None:
        return self.ended.final_answer.text if self.ended.HasField("final_answer") else None

    @property
    def names(self) -> dict[str, tuple[str, str]]:
        return {one.name: (one.type_name, one.size) for one in self.ended.variables}


class CellCalls:
    """A running cell's calls of Ask: those in flight, and how long there was at least one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.over = False  # it is being stopped, or has ended
        self._in_flight: set[asyncio.Task[pb.AskResponse]] = set()
        self._since = 0.0
        self._waited_s = 0.0

    async def wait(self, work: Awaitable[pb.AskResponse]) -> pb.AskResponse:
        """Raises CancelledError, with `over` set, when the cell ends or stops first."""
        task = asyncio.ensure_future(work)
        if not self._in_flight:
            self._since = time.monotonic()
        self._in_flight.add(task)
        try:
            return await task
        finally:
            self._in_flight.discard(task)
            if not self._in_flight:
                self._waited_s += time.monotonic() - self._since

    def end(self) -> None:
        """Cancels all that are in flight, and lets no more begin."""
        self.over = True
        for task in self._in_flight:
            task.cancel()

    def waited(self) -> pb.Waited:
        """The answer to a TimeCheck."""
        now_s = time.monotonic() - self._since if self._in_flight else 0.0
        return pb.Waited(cell=self.number, seconds=self._waited_s + now_s, waits=bool(self._in_flight))


class GuestHost(guest_pb2_grpc.GuestServiceServicer):
    """Talks to one agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer: Answer = echo
        self.asked: list[pb.AskRequest] = []
        self.tell: Callable[[pb.Waited], list[pb.Waited]] = lambda waited: [waited]  # what a time check is answered by
        self.cancelled = asyncio.Event()
        self.hello: pb.Hello | None = None
        self.agent: asyncio.subprocess.Process | None = None
        self.beats = asyncio.Semaphore(0)
        self.attached = asyncio.Event()
        self._to_guest: asyncio.Queue[pb.AttachResponse | None] = asyncio.Queue()
        self._from_guest: asyncio.Queue[pb.AttachRequest | None] = asyncio.Queue()
        self._cell = 0
        self._calls: CellCalls | None = None  # there is one while a cell runs

    async def Attach(self, requests: Any, context: Any) -> AsyncIterator[pb.AttachResponse]:
        async def read() -> None:
            try:
                async for message in requests:
                    match message.WhichOneof("message"):
                        case "hello":
                            self.hello = message.hello
                            self.attached.set()
                        case "heartbeat":
                            self.beats.release()
                        case "stopping":
                            self._running(message.stopping.cell).end()
                        case "time_check":
                            for waited in self.tell(self._running(message.time_check.cell).waited()):
                                self.send(pb.AttachResponse(waited=waited))
                        case "cell_ended":
                            self._running(message.cell_ended.cell).end()
                            self._calls = None
                            self._from_guest.put_nowait(message)
                        case _:
                            self._from_guest.put_nowait(message)
            finally:
                self._from_guest.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (message := await self._to_guest.get()) is not None:
                yield message
        finally:
            reader.cancel()

    async def Ask(self, request: pb.AskRequest, context: Any) -> pb.AskResponse:
        calls = self._calls
        if calls is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "a question can only be asked while a cell runs")
            raise AssertionError
        if calls.over:
            await context.abort(grpc.StatusCode.CANCELLED, "the cell is being stopped")
        self.asked.append(request)
        try:
            return await calls.wait(self.answer(request))
        except asyncio.CancelledError:
            self.cancelled.set()
            task = asyncio.current_task()
            if calls.over and task is not None and not task.cancelling():  # else the guest has given it up itself
                await context.abort(grpc.StatusCode.CANCELLED, "the cell has ended")
            raise

    def _running(self, cell: int) -> CellCalls:
        assert self._calls is not None
        assert self._calls.number == cell
        return self._calls

    async def open(self, *, queries: bool = True, head: int = 20_000, tail: int = 5_000, **context: Any) -> None:
        """`context`: the fields of a Context; none for none."""
        message = pb.Open(queries_allowed=queries, output_head_bytes=head, output_tail_bytes=tail)
        if context:
            message.context.CopyFrom(pb.Context(**context))
        self._to_guest.put_nowait(pb.AttachResponse(open=message))
        assert (await self.receive()).WhichOneof("message") == "opened"

    def start(self, code: str, time_limit_s: float = 60, grace_s: float = 5) -> int:
        """Sends a cell and returns its number."""
        self._cell += 1
        self._calls = CellCalls(self._cell)
        cell = pb.RunCell(cell=self._cell, code=code, time_limit_s=time_limit_s, grace_s=grace_s)
        self._to_guest.put_nowait(pb.AttachResponse(run_cell=cell))
        return self._cell

    async def run(self, code: str, time_limit_s: float = 60, grace_s: float = 5) -> Ran:
        """Sends a cell and waits for its end."""
        self.start(code, time_limit_s, grace_s)
        return await self.end()

    async def end(self) -> Ran:
        """Waits for the running cell's end."""
        out, err, count = Pieces(), Pieces(), 0
        while True:
            message = await self.receive()
            if message.WhichOneof("message") == "cell_ended":
                outputs = list(message.cell_ended.outputs)
            else:
                outputs = [message.output]
            for output in outputs:
                assert output.cell == self._cell
                (out if output.stream == pb.OUTPUT_STREAM_STDOUT else err).add(output)
                count += 1
            if message.WhichOneof("message") == "cell_ended":
                assert message.cell_ended.cell == self._cell
                return Ran(message.cell_ended, out, err, count)

    def interrupt(self) -> None:
        """Interrupts the running cell."""
        self._to_guest.put_nowait(pb.AttachResponse(interrupt=pb.Interrupt(cell=self._cell)))

    def send(self, message: pb.AttachResponse) -> None:
        """Sends any message."""
        self._to_guest.put_nowait(message)

    def hang_up(self) -> None:
        """Ends the stream from the host's side."""
        self._to_guest.put_nowait(None)

    async def receive(self) -> pb.AttachRequest:
        """The guest's next message that is no heartbeat; fails when the guest has hung up."""
        message = await self._from_guest.get()
        assert message is not None, "the guest has ended the stream"
        return message


@asynccontextmanager
async def guest_host(**environment: str) -> AsyncIterator[GuestHost]:
    """A host with an agent attached to it; both are gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rlm-g-"))  # short: a socket's path has at most 107 bytes
    host = GuestHost(folder)
    size = [("grpc.max_receive_message_length", MESSAGE_CAP), ("grpc.max_send_message_length", MESSAGE_CAP)]
    server = grpc.aio.server(options=size)
    guest_pb2_grpc.add_GuestServiceServicer_to_server(host, server)
    server.add_insecure_port(f"unix:{folder}/socket")
    await server.start()
    host.agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(GUEST / "main.py"),
        env=os.environ | {"RLM_ADDRESS": f"unix:{folder}/socket", **environment},
    )
    try:
        await host.attached.wait()
        yield host
    finally:
        host.hang_up()
        await host.agent.wait()
        await server.stop(None)
        shutil.rmtree(folder)
