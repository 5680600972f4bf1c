"""Where the time of a cell and of a question goes: the processor time of each process that has a part in them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.registry import Row, benchmark, repeats
from benchmarks.setting import at_once, orchestrator_with, says
from orchestrator.seams import Sandbox

AT_A_TIME = 200
ASK = f"for n in range({AT_A_TIME}): llm_query(str(n))"
WHO = ("orchestrator", "agent", "worker")


@benchmark("shares", "Whose processor time a cell and a question take")
async def shares() -> Sequence[Row]:
    """`1 + 1`, and `llm_query` answered in 0 ms, 200 of each at a time, in turns, after 400 of each. The kernel's
    count of each process's time on a processor (/proc/PID/task/*/schedstat), divided by 200: the orchestrator's
    process, and of the container the agent, which is process 1, and the worker. What the kernel does for a process
    counts; what it waits for does not, so these are steadier than times by the clock."""
    async with (
        orchestrator_with({"model": says("")}, pool_max=0) as orchestrator,
        orchestrator.sandbox(answer=at_once) as sandbox,
    ):
        try:
            pids = (os.getpid(), *await asyncio.to_thread(_processes_of, sandbox.name))
        except (OSError, subprocess.CalledProcessError):
            return [Row("the engine's processes are not to be seen from here", (), "")]
        cells: list[tuple[float, ...]] = []
        questions: list[tuple[float, ...]] = []
        for n in range(repeats(20) + 2):
            cell = await _share(pids, lambda: _cells(sandbox))
            question = await _share(pids, lambda: sandbox.run(ASK))
            if n >= 2:  # the first ones warm up
                cells.append(cell)
                questions.append(question)
    return [
        Row(f"{what}: {who}", tuple(each[place] for each in found), "us")
        for what, found in (("a cell", cells), ("a question", questions))
        for place, who in enumerate(WHO)
    ]


def _processes_of(name: str) -> tuple[int, int]:
    """The agent and the worker of a container, as this machine numbers them."""
    command = ["docker", "inspect", "--format", "{{.State.Pid}}", name]
    agent = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text("ascii").split()
    if "/opt/rlm/agent/main.py" not in Path(f"/proc/{agent}/cmdline").read_text("utf-8") or not children:
        raise ProcessLookupError(f"{agent} is no process of this machine")
    return agent, int(children[0])


async def _cells(sandbox: Sandbox) -> None:
    for _ in range(AT_A_TIME):
        await sandbox.run("1 + 1")


async def _share(pids: Sequence[int], work: Callable[[], Awaitable[object]]) -> tuple[float, ...]:
    before = [_ran_us(pid) for pid in pids]
    await work()
    return tuple((_ran_us(pid) - was) / AT_A_TIME for pid, was in zip(pids, before, strict=True))


def _ran_us(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text("ascii").split()[0]) for thread in threads) / 1e3
