"""What the benchmarks run on: an orchestrator in a state directory of its own, with scripted models."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from orchestrator.build import Orchestrator, open_orchestrator
from orchestrator.config import Config
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.values import Answered, Batch, Slot

IMAGE = "rlm-sandbox:latest"
Script = Mapping[str, str]  # see orchestrator/testing/scripted/script.py


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


def says(text: str, after_s: float = 0.0) -> Script:
    """A model that answers each request with this text."""
    return {"text": text, "faults": f"latency={after_s}"} if after_s else {"text": text}


@contextmanager
def scripted(models: Mapping[str, Script]) -> Iterator[str]:
    """The address of a scripted server, in a process of its own, as a model's API has machines of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"models": models}, file)
        file.flush()
        command = [sys.executable, "-m", "orchestrator.testing.scripted", "--script", file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield f"{process.stdout.readline().strip()}/v1"
            finally:
                process.terminate()


@asynccontextmanager
async def orchestrator_with(models: Mapping[str, Script], **settings: Any) -> AsyncIterator[Orchestrator]:
    """The models by depth, the root's first."""
    with state_dir() as state, scripted(models) as base_url:
        given = {"base_url": base_url, "api_key": "scripted", "state_dir": state, "models": tuple(models)}
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
    await asyncio.sleep(0.6)
