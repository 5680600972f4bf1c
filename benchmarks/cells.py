"""One cell and one question, beside gRPC with nothing in it and beside `docker exec`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.floors import BareGrpc, EmptyContainers, bare_grpc
from benchmarks.registry import Row, benchmark, repeats
from benchmarks.setting import IMAGE, at_once, orchestrator_with, says, timed
from orchestrator.seams import Sandbox

AT_A_TIME = 50
PAIRS = 5
# Printed at the end: what is printed wakes other processes, and would be carried away while the next question is asked.
ASK = """\
import time
took = []
for n in range({count}):
    began = time.perf_counter()
    llm_query(str(n))
    took.append(1e3 * (time.perf_counter() - began))
print(*took)
"""
EXEC = ["/opt/rlm/python", "-I", "-S", "-c", "print(1 + 1)"]


@benchmark("cell", "A cell, a question, and a megabyte of output", core=True)
async def cell() -> Sequence[Row]:
    """A cell, `1 + 1`, is held against a message there and back on one open stream of gRPC between two processes on a
    Unix socket, from the same event loop; a question (`llm_query`, answered by the orchestrator in 0 ms; timed by the
    code itself, which prints its times at the end) against a unary call between the same two. They take turns, 50 of
    each at a time, after one turn that is not counted; five sandboxes and five pairs of processes, one after the other,
    since which processors the kernel gives a pair decides what it takes. `docker exec` starts a Python that prints the
    same, over the engine's interface; held against the cell. The output of 1 MB is printed in one call: the model would
    see its ends, so 64 KiB of it travel."""
    found = _Turns([], [], [], [])
    async with orchestrator_with({"model": says("")}, pool_max=0) as orchestrator:
        for _ in range(PAIRS):
            async with orchestrator.sandbox(answer=at_once) as sandbox, bare_grpc() as bare:
                await _take_turns(sandbox, bare, repeats(4), found)
        async with orchestrator.sandbox() as sandbox:
            output = [1e3 * await timed(lambda: sandbox.run("print('x' * 1_000_000)")) for _ in range(repeats(40))]
    execs = await asyncio.to_thread(_execs, repeats(20))
    ping, call = Row("a bare ping", tuple(found.pings), "ms"), Row("a bare unary call", tuple(found.calls), "ms")
    cell_row = Row("a cell, 1 + 1", tuple(found.cells), "ms", ping.median)
    return [
        ping,
        cell_row,
        call,
        Row("a question", tuple(found.questions), "ms", call.median),
        Row("docker exec of a Python", tuple(execs), "ms", cell_row.median),
        Row("a cell that prints 1 MB", tuple(output), "ms"),
    ]


class _Turns(NamedTuple):
    """Milliseconds of each."""

    pings: list[float]
    cells: list[float]
    calls: list[float]
    questions: list[float]


async def _take_turns(sandbox: Sandbox, bare: BareGrpc, rounds: int, found: _Turns) -> None:
    for n in range(rounds + 1):
        ping = [1e3 * await timed(bare.ping) for _ in range(AT_A_TIME)]
        one = [1e3 * await timed(lambda: sandbox.run("1 + 1")) for _ in range(AT_A_TIME)]
        call = [1e3 * seconds for seconds in await bare.unary(AT_A_TIME)]
        asked = await sandbox.run(ASK.format(count=AT_A_TIME))
        if n:  # the first round warms up
            found.pings.extend(ping)
            found.cells.extend(one)
            found.calls.extend(call)
            found.questions.extend(map(float, asked.stdout.text.split()))


def _execs(count: int) -> list[float]:
    with TemporaryDirectory(dir="/var/tmp") as folder, closing(EmptyContainers(IMAGE, Path(folder))) as engine:
        container, _ = engine.start()
        try:
            return [1e3 * engine.exec(container, EXEC) for _ in range(count)]
        finally:
            engine.remove(container)
