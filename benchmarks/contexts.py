"""Contexts of 1 kB and of 1 GB: what does the size cost before, and when, the code touches it?"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.registry import Row, benchmark, quick, repeats
from benchmarks.setting import orchestrator_with, says, timed
from orchestrator.seams import Sandbox

REPEATS = 2
BLOCK = b"A line of a long text, of the plain kind that a log or a book has in it.\n" * 1000
SIZES = {"1 kB": 10**3, "1 GB": 10**9}

# In a process of its own, since a peak of memory is a process's whole life long.
PROGRAM = """
import asyncio, json, resource, sys, time
from pathlib import Path
from benchmarks.setting import orchestrator_with, says

PEAK = '''
from pathlib import Path
peaks = [Path("/sys/fs/cgroup/memory/memory.max_usage_in_bytes"), Path("/sys/fs/cgroup/memory.peak")]
print(next((p.read_text().strip() for p in peaks if p.exists()), "nan"))
'''

async def main():
    found = {}
    async with orchestrator_with({"model": says("")}, pool_max=0, memory_mib=4096) as orchestrator:
        began = time.perf_counter()
        async with orchestrator.sandbox(Path(sys.argv[1])) as sandbox:
            await sandbox.run("1 + 1")
            found["first_cell_s"] = time.perf_counter() - began
            touching = await sandbox.run("print(len(context))")
            found["touch_s"] = touching.seconds
            assert touching.error is None, touching
            result = await sandbox.run(PEAK)
            found["guest_peak_mib"] = float(result.stdout.text) / 2**20
    found["host_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))

asyncio.run(main())
"""
MEASURES = (
    ("to the first cell", "first_cell_s", "s"),
    ("to load it when touched", "touch_s", "s"),
    ("host process, peak resident", "host_peak_mib", "MiB"),
    ("guest's cgroup, peak", "guest_peak_mib", "MiB"),
)


@benchmark("context-cells", "A cell at a context of any size", core=True)
async def context_cells() -> Sequence[Row]:
    """`1 + 1` in four sandboxes, whose contexts of 1 kB, 1 MB, 100 MB and 1 GB have been touched before and stay in
    memory; they take turns, 50 cells each. Held against the one of 1 kB."""
    sizes = {"1 kB": 10**3, "1 MB": 10**6, "100 MB": 10**8} | ({} if quick() else {"1 GB": 10**9})
    cells: dict[str, list[float]] = {name: [] for name in sizes}
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(dir="/var/tmp"))
        orchestrator = await stack.enter_async_context(
            orchestrator_with({"model": says("")}, pool_max=0, memory_mib=4096)
        )
        sandboxes: dict[str, Sandbox] = {}
        for name, count in sizes.items():
            path = Path(folder, "context.txt")
            await asyncio.to_thread(_write, path, count)
            sandboxes[name] = await stack.enter_async_context(orchestrator.sandbox(path))
            touched = await sandboxes[name].run("print(len(context))")
            assert touched.stdout.text.strip() == str(count), touched
        for _ in range(repeats(10)):
            for name, sandbox in sandboxes.items():
                cells[name] += [1e3 * await timed(lambda: sandbox.run("1 + 1")) for _ in range(50)]  # noqa: B023
    least = statistics.median(cells["1 kB"])
    return [Row(f"a cell at {name}", tuple(found), "ms", least) for name, found in cells.items()]


@benchmark("context", "A context of 1 kB and of 1 GB")
async def context() -> Sequence[Row]:
    """A text file given as a path. To the first cell: from handing it over to the end of a first cell that does not
    touch it, the copy of the file and a cold sandbox's start included. Then `len(context)` in a second one. Memory: of
    the host's process (ru_maxrss) and of the container's cgroup, page cache included, each over the whole run."""
    rows = []
    with TemporaryDirectory(dir="/var/tmp") as folder:
        for size, count in SIZES.items():
            path = Path(folder, "context.txt")
            await asyncio.to_thread(_write, path, count)
            runs = [await asyncio.to_thread(_measure, path) for _ in range(REPEATS)]
            for what, key, unit in MEASURES:
                rows.append(Row(f"{size}: {what}", tuple(run[key] for run in runs), unit))
    return rows


def _write(path: Path, count: int) -> None:
    with path.open("wb") as file:
        while (left := count - file.tell()) > 0:
            file.write(BLOCK[:left])


def _measure(path: Path) -> dict[str, float]:
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
