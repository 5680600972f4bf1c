"""What watching and serving cost: sinks of events, a journal, and 100 runs at a time in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.registry import Row, benchmark, repeats
from benchmarks.setting import orchestrator_with, pool_is_full, reply, says
from orchestrator.events import Record, Sink
from orchestrator.folds.journal import JournalWriter

BATCH = 'FINAL(len(llm_batch([f"q{n}" for n in range(200)], max_concurrent=20)))'
RUNS = 100
TICK_S = 0.005


@benchmark("recording", "A run recorded, and not")
async def recording() -> Sequence[Row]:
    """A run whose one cell asks 200 questions of a model that takes no time, without a sink, with one that only counts
    the events, and with a journal in a file; they take turns. Held against the one without."""
    models = {"root": says(reply(BATCH)), "leaf": says("yes")}
    seconds: dict[str, list[float]] = {"nobody watches": [], "events are counted": [], "a journal is written": []}
    async with orchestrator_with(models, pool_min=1, pool_max=1, cache_mib=0) as orchestrator:
        await orchestrator.ask("Go.")
        for n in range(repeats(6)):
            for what, found in seconds.items():
                await pool_is_full(orchestrator, 1)
                with TemporaryDirectory() as folder, ExitStack() as stack:
                    sinks: list[Sink] = []
                    match what:
                        case "events are counted":
                            sinks.append(_Counter())
                        case "a journal is written":
                            path = Path(folder, f"{n}.jsonl")
                            sinks.append(stack.enter_context(JournalWriter(path, package="benchmarks")))
                    began = time.perf_counter()
                    await orchestrator.ask("Go.", sinks=sinks)
                    found.append(time.perf_counter() - began)
    rows = [Row(what, tuple(found), "s") for what, found in seconds.items()]
    return [rows[0], *(Row(row.what, row.samples, row.unit, rows[0].median) for row in rows[1:])]


@benchmark("service", "100 runs at a time")
async def service() -> Sequence[Row]:
    """100 runs in one process at the same time, each of one cell that asks one question; every model takes 200 ms. At
    most 16 sandboxes at a time, so most of the time is the start of 100 containers; held against two model calls. The
    event loop's lag: how much later than after 5 ms a task that sleeps for 5 ms wakes up, all the while."""
    models = {
        "root": says(reply('FINAL(llm_query("q"))'), 0.2),
        "leaf": says("yes", 0.2),
    }
    lags: list[float] = []
    async with orchestrator_with(models, capacity=16, pool_min=8, pool_max=8, max_concurrent=100) as orchestrator:
        await orchestrator.ask("Go.")
        await pool_is_full(orchestrator, 8)
        watching = asyncio.create_task(_watch_lag(lags))
        began = time.perf_counter()
        results = await asyncio.gather(*(orchestrator.ask(f"Go {n}.") for n in range(RUNS)))
        seconds = time.perf_counter() - began
        watching.cancel()
        assert all(result.answer == "yes" for result in results)
    return [
        Row("all of them", (seconds,), "s", 0.4),
        Row("one run, by its own clock", tuple(result.seconds for result in results), "s", 0.4),
        Row("lag of the event loop", tuple(lags), "ms"),
    ]


class _Counter:
    def __init__(self) -> None:
        self.events = 0

    def __call__(self, record: Record) -> None:
        self.events += 1


async def _watch_lag(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        lags.append(1e3 * (time.perf_counter() - began - TICK_S))
