"""Many sandboxes at a time, one after the other, and at rest."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.registry import Row, benchmark, quick
from benchmarks.setting import orchestrator_with, says, timed
from orchestrator.build import Orchestrator
from orchestrator.seams import Sandbox

LIVE = 200
CHURN_S = float(os.environ.get("CHURN_S", "40"))
MODELS = {"model": says("")}
_MIB = 1024 * 1024


@benchmark("many", "200 live sandboxes")
async def many() -> Sequence[Row]:
    """200 sandboxes are opened, 8 at a time, and stay. Then `1 + 1` in one after the other: its processes have slept,
    and 200 agents send heartbeats meanwhile. Memory: what the container's cgroup is charged (memory.usage) less page
    cache, which is the image's and charged to whoever came first. Both are held against what was set as a target."""
    async with AsyncExitStack() as stack:
        orchestrator = await stack.enter_async_context(
            orchestrator_with(MODELS, pool_max=0, capacity=LIVE, memory_mib=256)
        )
        began = time.perf_counter()
        sandboxes = await _opened(stack, orchestrator)
        opening = time.perf_counter() - began
        for sandbox in sandboxes:
            await sandbox.run("1 + 1")
        cells = [1e3 * await timed(lambda: sandbox.run("1 + 1")) for _ in range(2) for sandbox in sandboxes]  # noqa: B023
        memory = [await asyncio.to_thread(_charged_mib, sandbox.name) for sandbox in sandboxes[:: LIVE // 10]]
        return [
            Row("to open all of them", (opening,), "s"),
            Row("a cell, 1 + 1, in one after the other", tuple(cells), "ms", 20.0),
            Row("memory of one, its image's pages aside", tuple(memory), "MiB", 20.0),
        ]


@benchmark("churn", "One sandbox after the other")
async def churn() -> Sequence[Row]:
    """Two tasks open a sandbox, run a cell and close it, over and over, with a pool of 2, for 40 s (CHURN_S=1800 for
    half an hour). The orchestrator's resident memory and open descriptors are sampled every 8 sandboxes; a straight
    line is laid through the second half of the samples."""
    samples: list[tuple[int, float, int]] = []
    done = 0

    async def work(orchestrator: Orchestrator, until: float) -> None:
        nonlocal done
        while time.monotonic() < until:
            async with orchestrator.sandbox() as sandbox:
                await sandbox.run("x = 'y' * 1000; print(len(x))")
            done += 1
            if done % 8 == 0:
                samples.append((done, _resident_mib(), len(os.listdir("/proc/self/fd"))))

    async with orchestrator_with(MODELS, pool_min=2, pool_max=2) as orchestrator:
        began = time.monotonic()
        await asyncio.gather(*(work(orchestrator, began + CHURN_S / (3 if quick() else 1)) for _ in range(2)))
        seconds = time.monotonic() - began
    late = samples[len(samples) // 2 :]
    counts = [float(count) for count, _, _ in late]
    memory = statistics.linear_regression(counts, [mib for _, mib, _ in late]).slope
    descriptors = statistics.linear_regression(counts, [float(files) for _, _, files in late]).slope
    return [
        Row("sandboxes used", (float(done),), ""),
        Row("sandboxes a minute", (60 * done / seconds,), ""),
        Row("memory, for each further sandbox", (1024 * memory,), "KiB"),
        Row("descriptors, for each further sandbox", (descriptors,), ""),
    ]


async def _opened(stack: AsyncExitStack, orchestrator: Orchestrator) -> list[Sandbox]:
    at_a_time = asyncio.Semaphore(8)
    close = asyncio.Event()
    opened: list[Sandbox] = []

    @asynccontextmanager
    async def all_open() -> AsyncIterator[None]:
        async def hold(ready: asyncio.Future[None]) -> None:
            async with AsyncExitStack() as own:
                try:
                    async with at_a_time:
                        opened.append(await own.enter_async_context(orchestrator.sandbox()))
                except BaseException as error:
                    ready.set_exception(error)
                    raise
                ready.set_result(None)
                await close.wait()

        loop = asyncio.get_running_loop()
        ready = [loop.create_future() for _ in range(LIVE)]
        holders = [asyncio.create_task(hold(one)) for one in ready]
        try:
            await asyncio.gather(*ready)
            yield
        finally:
            close.set()
            await asyncio.gather(*holders, return_exceptions=True)

    await stack.enter_async_context(all_open())
    return opened


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB


def _charged_mib(name: str) -> float:
    command = ["docker", "inspect", "--format", "{{.Id}}", name]
    container = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    version_1 = Path("/sys/fs/cgroup/memory/docker", container)
    if version_1.exists():
        usage, page_cache = (version_1 / "memory.usage_in_bytes").read_text(), "cache"
        stat = (version_1 / "memory.stat").read_text()
    else:
        folder = next(Path("/sys/fs/cgroup").rglob(f"*{container}*"))
        usage, stat, page_cache = (folder / "memory.current").read_text(), (folder / "memory.stat").read_text(), "file"
    fields = dict(line.split() for line in stat.splitlines())
    return (int(usage) - int(fields[page_cache])) / _MIB
