"""The agent's one conversation with the host: opens the stream, does what the host says, and ends with the stream."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio
from agent_asks import Asks
from agent_cells import Cells, HostError
from agent_files import read_file, write_file
from agent_processes import WorkerProcess
from agent_settings import Settings
from rlm.guest.v1 import guest_pb2 as pb
from rlm.guest.v1.guest_pb2_grpc import GuestServiceStub

PROTOCOL_VERSION = 2
MESSAGE_CAP = 64 << 20  # bytes

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MESSAGE_CAP),
    ("grpc.max_receive_message_length", MESSAGE_CAP),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # The host may bind the socket a moment after the container starts.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


async def attach(settings: Settings, first: WorkerProcess) -> None:
    """Talks to the host until the stream ends.

    Raises:
        HostError, OSError or grpc.aio.AioRpcError: it ended otherwise than by the host's closing it.
        TimeoutError: the host was not there in time, or the longest lifetime is over.
    """
    lifetime_s = settings.max_lifetime_s or None
    outgoing: asyncio.Queue[pb.AttachRequest] = asyncio.Queue()
    async with (
        asyncio.timeout(lifetime_s),
        grpc.aio.insecure_channel(settings.address, options=CHANNEL_OPTIONS) as channel,
    ):
        stub = GuestServiceStub(channel)
        cells = Cells(settings, first, outgoing.put_nowait, lambda reply, changed: Asks(stub, reply, changed))
        call: Any
        async with asyncio.timeout(settings.attach_timeout_s):
            await channel.channel_ready()
            call = stub.Attach()
            hello = pb.Hello(protocol_version=PROTOCOL_VERSION, python_version=sys.version.split()[0])
            await call.write(pb.AttachRequest(hello=hello))
        parts = (
            _receive(call, cells, outgoing, settings.file_dir),
            _send(call, outgoing),
            _beat(outgoing, settings.heartbeat_s),
            cells.failed(),
        )
        tasks = [asyncio.ensure_future(part) for part in parts]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _receive(call: Any, cells: Cells, outgoing: asyncio.Queue[pb.AttachRequest], file_dir: str) -> None:
    while (message := await call.read()) is not grpc.aio.EOF:
        match message.WhichOneof("message"):
            case "run_cell":
                cells.run(message.run_cell)
            case "open":
                cells.open(message.open)
            case "interrupt":
                cells.interrupt(message.interrupt.cell)
            case "write_file":
                outgoing.put_nowait(pb.AttachRequest(file_ended=write_file(file_dir, message.write_file)))
            case "read_file":
                outgoing.put_nowait(pb.AttachRequest(file_ended=read_file(file_dir, message.read_file)))
            case kind:
                raise HostError(f"the host sent an unknown message ({kind})")


async def _send(call: Any, outgoing: asyncio.Queue[pb.AttachRequest]) -> None:
    while True:
        await call.write(await outgoing.get())


async def _beat(outgoing: asyncio.Queue[pb.AttachRequest], period_s: float) -> None:
    while True:
        await asyncio.sleep(period_s)
        outgoing.put_nowait(pb.AttachRequest(heartbeat=pb.Heartbeat()))
