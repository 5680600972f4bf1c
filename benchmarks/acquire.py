"""How long until there is a sandbox, cold and from the pool, beside what the engine itself takes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.floors import EmptyContainers
from benchmarks.registry import Row, benchmark, repeats
from benchmarks.setting import IMAGE, orchestrator_with, pool_is_full, says
from orchestrator.build import Orchestrator

POOL = 8
MODELS = {"model": says("")}


@benchmark("acquire", "A sandbox, cold and from the pool", core=True)
async def acquire() -> Sequence[Row]:
    """Held against the engine's own create and start of a container of the same image under the same policy, in which
    nothing but `sleep` runs; the three take turns, and each begins when the engine is done with the one before. Cold:
    from asking to having, no pool. From the pool: it is full before each turn, and its 8 are taken one after the
    other, while the engine destroys those before. The first cell of one from the pool: `1 + 1`, in processes that have
    slept."""
    rounds = repeats(30)
    empty: list[float] = []
    cold: list[float] = []
    warm: list[float] = []
    first: list[float] = []
    with TemporaryDirectory(dir="/var/tmp") as folder, ExitStack() as stack:
        os.chmod(folder, 0o755)
        engine = stack.enter_context(closing(EmptyContainers(IMAGE, Path(folder))))
        async with (
            orchestrator_with(MODELS, pool_max=0) as without,
            orchestrator_with(MODELS, pool_min=POOL, pool_max=POOL) as pooled,
        ):
            for _ in range(rounds):
                await pool_is_full(pooled, POOL)
                container, seconds = await asyncio.to_thread(engine.start)
                empty.append(seconds)
                await asyncio.to_thread(engine.remove, container)
                cold.append(await _acquired(without, []))
                await pool_is_full(pooled, POOL)  # and the cold one is gone
                for _ in range(POOL):
                    warm.append(await _acquired(pooled, first))
    floor = Row("", tuple(empty), "s").median
    return [
        Row("create and start, empty", tuple(empty), "s"),
        Row("a sandbox, cold", tuple(cold), "s", floor),
        Row("a sandbox, from the pool", tuple(1e3 * s for s in warm), "ms", 1e3 * floor),
        Row("its first cell", tuple(1e3 * s for s in first), "ms"),
    ]


@benchmark("burst", "50 sandboxes at once")
async def burst() -> Sequence[Row]:
    """50 tasks ask for a sandbox in the same moment and run `1 + 1` in it; capacity 50. Without a pool, and with 50
    kept warm. Timed from the first request to the last cell's end. A container that is over capacity would wait, and be
    told after queue_timeout_s."""
    rows = []
    for what, pool in (("no pool", 0), ("50 kept warm", 50)):
        async with orchestrator_with(MODELS, pool_min=pool, pool_max=pool, capacity=50) as orchestrator:
            await pool_is_full(orchestrator, pool)
            began = time.perf_counter()
            await asyncio.gather(*(_used(orchestrator) for _ in range(50)))
            rows.append(Row(what, (time.perf_counter() - began,), "s"))
    return rows


async def _acquired(orchestrator: Orchestrator, first_cells: list[float]) -> float:
    began = time.perf_counter()
    async with orchestrator.sandbox() as sandbox:
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        await sandbox.run("1 + 1")
        first_cells.append(time.perf_counter() - began)
    return seconds


async def _used(orchestrator: Orchestrator) -> None:
    async with orchestrator.sandbox() as sandbox:
        await sandbox.run("1 + 1")
