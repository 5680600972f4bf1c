"""What watching costs: sinks of events, and a journal."""

from __future__ import annotations

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


class _Counter:
    def __init__(self) -> None:
        self.events = 0

    def __call__(self, record: Record) -> None:
        self.events += 1
