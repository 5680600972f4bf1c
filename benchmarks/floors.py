"""What a thing cannot be quicker than, measured beside it: gRPC with nothing in it, a container that does nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
import grpc
import grpc.aio

from orchestrator.sandbox.container_config import container_config
from orchestrator.sandbox.engine import ContainerSpec
from orchestrator.sandbox.policy import load_policy

# In a process of its own, as a guest is: it echoes what comes on the stream, and makes unary calls when told to.
CLIENT = """
import asyncio, json, sys, time
import grpc.aio

def same(data):
    return data

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        stream = channel.stream_stream("/bench/Stream", same, same)()
        unary = channel.unary_unary("/bench/Unary", same, same)
        await stream.write(b"up")
        while (message := await stream.read()) is not grpc.aio.EOF:
            if message.startswith(b"unary "):
                seconds = []
                for _ in range(int(message[6:])):
                    began = time.perf_counter()
                    await unary(b"x" * 40)
                    seconds.append(time.perf_counter() - began)
                message = json.dumps(seconds).encode()
            await stream.write(message)

asyncio.run(main())
"""


class BareGrpc:
    """One stream and one unary method on a Unix socket, of bytes as they are."""

    def __init__(self) -> None:
        self._to_client: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._from_client: asyncio.Queue[bytes] = asyncio.Queue()

    async def ping(self, message: bytes = b"x" * 40) -> bytes:
        """There and back on the open stream, from this process."""
        self._to_client.put_nowait(message)
        return await self._from_client.get()

    async def unary(self, count: int) -> list[float]:
        """Seconds of so many calls, as the other process sees them."""
        seconds: list[float] = json.loads(await self.ping(b"unary %d" % count))
        return seconds

    async def _stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        async def read() -> None:
            async for message in requests:
                self._from_client.put_nowait(message)

        reader = asyncio.create_task(read())
        try:
            while (message := await self._to_client.get()) is not None:
                await context.write(message)
        finally:
            reader.cancel()

    async def _unary(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request


@asynccontextmanager
async def bare_grpc() -> AsyncIterator[BareGrpc]:
    bare = BareGrpc()
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Stream": grpc.stream_stream_rpc_method_handler(bare._stream),
        "Unary": grpc.unary_unary_rpc_method_handler(bare._unary),
    }
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        address = f"unix:{folder}/socket"
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", methods),))
        server.add_insecure_port(address)
        await server.start()
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, address)
        try:
            await bare._from_client.get()
            yield bare
        finally:
            bare._to_client.put_nowait(None)
            await client.wait()
            await server.stop(None)


class EmptyContainers:
    """Containers under the sandboxes' whole policy, in which `sleep` runs: what the engine itself takes."""

    def __init__(self, image: str, directory: Path) -> None:
        self._api = docker.APIClient(version="auto")
        spec = ContainerSpec(
            name="", image_id=image, policy=load_policy(), directory=directory, environment={}, labels={}
        )
        self._config = container_config(spec) | {"Entrypoint": ["/bin/sleep", "3600"]}

    def start(self) -> tuple[str, float]:
        """The container's id, and the seconds of its create and start."""
        began = time.perf_counter()
        container: str = self._api.create_container_from_config(self._config)["Id"]  # type: ignore[no-untyped-call]
        self._api.start(container)
        return container, time.perf_counter() - began

    def exec(self, container: str, command: list[str]) -> float:
        """Seconds of one `docker exec`, over the engine's own interface, without the command-line client."""
        began = time.perf_counter()
        made = self._api.exec_create(container, command)["Id"]
        if self._api.exec_start(made).strip() != b"2":
            raise RuntimeError("docker exec printed something else")
        return time.perf_counter() - began

    def remove(self, container: str) -> None:
        self._api.remove_container(container, force=True)

    def close(self) -> None:
        self._api.close()
