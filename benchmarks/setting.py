"""What the benchmarks run on: an orchestrator in a state directory of its own, with scripted models."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from orchestrator.build import Orchestrator, open_orchestrator
from orchestrator.config import Config
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.testing.scripted import Policy, ScriptedServerThread
from orchestrator.values import Answered, Batch, Slot

IMAGE = "rlm-sandbox:latest"


def reply(code: str) -> str:
    return f"```repl\n{code}\n```\n"


@contextmanager
def state_dir() -> Iterator[str]:
    # On a disk, and short enough for a socket's path.
    path = tempfile.mkdtemp(prefix="rlm-bench-", dir="/var/tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def orchestrator_with(policies: Mapping[str, Policy], **settings: Any) -> AsyncIterator[Orchestrator]:
    """The policies are the models by depth, the root's first. The server has a thread and loop of its own."""
    with state_dir() as state, ScriptedServerThread(policies) as server:
        given = {"base_url": server.base_url, "api_key": "scripted", "state_dir": state, "models": tuple(policies)}
        config = Config.load({**given, **settings}, environ={}, dotenv=None)
        async with open_orchestrator(config) as orchestrator:
            yield orchestrator


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def at_once(batch: Batch) -> Sequence[Slot]:
    """Answers for a sandbox without a model."""
    return [Answered("yes") for _ in batch.questions]


async def pool_is_full(orchestrator: Orchestrator, count: int) -> None:
    """Waits until so many sandboxes are idle and what was used before is destroyed, more or less."""
    assert isinstance(orchestrator.sandboxes, DockerSandboxes)
    while orchestrator.sandboxes.idle < count:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
