"""A sandbox under attack beside a neighbor, and what must be so after each probe."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache

from orchestrator.errors import SandboxLost
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.seams import Answer, Sandbox
from orchestrator.values import Answered, Batch, CellResult, Slot

PROBE_NAME = re.compile(r"test_((?:[RKPNCA]\d+_)+)(\w+)")
# What a neighbor took to answer while a test attacked, in seconds; emptied before each test.
NEIGHBOR_SECONDS: list[float] = []
_QUIET_ROUNDS = 7
_EVERY_S = 0.05
# An attack may take the processors that are there, and a neighbor gets its share of them: on two, with others at work,
# some tens of times a quiet answer was seen. A neighbor that is starved waits for the attack's end, which is seconds.
_SLOWER_AT_MOST = 50
_FLOOR_S = 0.03  # what a quiet answer may be taken for at least: a quicker one makes no bound narrower
_FORGET = "for name in [name for name in globals() if not name.startswith('_')]: del globals()[name]"
_CONNECTIONS = 8  # to the engine, which come and go
_MEMORY_SLACK = 96 << 20  # bytes: what an allocator may keep of a flood that is over


@cache
def runtimes() -> list[str]:
    """The runtimes that are probed: runc, and gVisor where the engine knows it. RLM_PROBE_RUNTIMES overrides."""
    if chosen := os.environ.get("RLM_PROBE_RUNTIMES"):
        return chosen.split(",")
    asked = subprocess.run(
        ["docker", "info", "--format", "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return ["runc", "runsc"] if "runsc" in asked.stdout.split() else ["runc"]


class Arena:
    """One attacked sandbox and one neighbor, used by many probes; a lost one is replaced."""

    def __init__(self, sandboxes: DockerSandboxes, runtime: str, answer: Answer | None, stack: AsyncExitStack) -> None:
        self.sandboxes = sandboxes
        self.runtime = runtime
        self._answer = answer
        self._stack = stack
        self._attacked: Sandbox | None = None
        self._neighbor: Sandbox | None = None
        self._quiet_s = 0.0

    @property
    def gvisor(self) -> bool:
        return self.runtime == "runsc"

    async def attack(self, code: str, time_limit_s: float = 20) -> CellResult | SandboxLost:
        """Runs the code while the neighbor answers and asks; afterwards both answer, and nothing of ours has grown.

        The neighbor is not starved: its middle answer meanwhile is held against its own, of a quiet moment before.
        """
        attacked, neighbor = await self._sandboxes()
        descriptors, memory = len(os.listdir("/proc/self/fd")), _resident_bytes()
        running = asyncio.create_task(attacked.run(code, time_limit_s=time_limit_s))
        waits: list[float] = []
        while not running.done() or not waits:
            waits.append(await timed(converses(neighbor)))
            await asyncio.wait([running], timeout=_EVERY_S)
        slowest = _SLOWER_AT_MOST * max(self._quiet_s, _FLOOR_S)
        assert statistics.median(waits) < slowest, f"the neighbor was starved: {waits}, quiet {self._quiet_s}"
        try:
            outcome = await running
            await answers(attacked)
        except SandboxLost as loss:
            self._attacked = None
            return loss
        await converses(neighbor)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= descriptors + _CONNECTIONS, (
            "descriptors of the orchestrator have leaked"
        )
        assert _resident_bytes() < memory + _MEMORY_SLACK, "the orchestrator's memory has grown"
        if not outcome.state_lost:
            await attacked.run(_FORGET)
        return outcome

    async def result(self, code: str, time_limit_s: float = 20) -> CellResult:
        """The result of an attack that the sandbox must survive."""
        outcome = await self.attack(code, time_limit_s)
        assert isinstance(outcome, CellResult), outcome
        return outcome

    async def says(self, code: str, time_limit_s: float = 20) -> str:
        """What the attack prints; it must run to its end."""
        result = await self.result(code, time_limit_s)
        assert result.error is None, result.error.traceback
        assert result.death is None, result.death
        return result.stdout.text.strip()

    async def _sandboxes(self) -> tuple[Sandbox, Sandbox]:
        if self._neighbor is None:
            self._neighbor = await self._stack.enter_async_context(self.sandboxes.open(None, _shouted))
            quiet = [await timed(converses(self._neighbor)) for _ in range(_QUIET_ROUNDS)]
            self._quiet_s = statistics.median(quiet)
        if self._attacked is None:
            self._attacked = await self._stack.enter_async_context(self.sandboxes.open(None, self._answer))
        return self._attacked, self._neighbor


@asynccontextmanager
async def arena(sandboxes: DockerSandboxes, runtime: str, answer: Answer | None = None) -> AsyncIterator[Arena]:
    async with AsyncExitStack() as stack:
        yield Arena(sandboxes, runtime, answer, stack)


async def answers(sandbox: Sandbox) -> None:
    assert (await sandbox.run("1 + 1")).stdout.text == "2\n"


async def converses(sandbox: Sandbox) -> None:
    """A cell, and a question of its code that is answered."""
    assert (await sandbox.run("print(1 + 1, llm_query('well?'))")).stdout.text == "2 WELL?\n"


async def _shouted(batch: Batch) -> Sequence[Slot]:
    return [Answered(question.prompt.upper()) for question in batch.questions]


async def timed(answering: Awaitable[None]) -> float:
    """Waits for a neighbor's answer, and keeps how long it took."""
    began = time.monotonic()
    await answering
    NEIGHBOR_SECONDS.append(time.monotonic() - began)
    return NEIGHBOR_SECONDS[-1]


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
