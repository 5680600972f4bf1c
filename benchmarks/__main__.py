"""`python -m benchmarks [NAME...]`: measures, prints, and writes docs/benchmarks.md when all were measured.

QUICK=1 measures the core only, in a short time, and writes nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.page import page, table
from benchmarks.plot import plot
from benchmarks.registry import BENCHMARKS, Benchmark, Row, quick

FILES = ("acquire", "cells", "against_peers", "fan_out", "many", "events", "service", "contexts")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main(names: list[str]) -> int:
    for file in FILES:
        import_module(f"benchmarks.{file}")
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0]
    results: dict[Benchmark, list[Row]] = {}
    for name in names or [name for name, each in BENCHMARKS.items() if each.core or not quick()]:
        chosen = BENCHMARKS[name]
        rows = list(asyncio.run(_measured(chosen)))
        results[chosen] = rows
        print(f"\n{chosen.title}\n\n{table(rows)}", flush=True)
    if not names and not quick():
        picture = plot(results, PAGE.parent / "images" / "benchmarks.svg")
        PAGE.write_text(page(results, load, picture), "utf-8")
        print(f"\nwritten: {PAGE}")
    return 0


async def _measured(chosen: Benchmark) -> list[Row]:
    return list(await chosen.measure())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
