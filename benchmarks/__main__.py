"""`python -m benchmarks [NAME...]`: measures, prints, and writes docs/benchmarks.md when all were measured.

QUICK=1 measures the core only, in a short time, and writes nothing.
"""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from pathlib import Path

import click

from benchmarks.page import page, table
from benchmarks.plot import plot
from benchmarks.registry import BENCHMARKS, Benchmark, Row, quick
from orchestrator.cli.garbage import collect_less_often

FILES = ("acquire", "cells", "shares", "against_peers", "fan_out", "many", "events", "service", "contexts")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

for file in FILES:
    import_module(f"benchmarks.{file}")


@click.command(
    help="Measures the benchmarks with these NAMEs, or all of them, and prints tables. After all of them, "
    "docs/benchmarks.md is written anew. QUICK=1 in the environment measures the core only, and writes nothing.",
    epilog="NAMEs: " + ", ".join(BENCHMARKS),
)
@click.argument("names", metavar="[NAME]...", nargs=-1, type=click.Choice(tuple(BENCHMARKS)))
def main(names: tuple[str, ...]) -> None:
    collect_less_often()
    load = os.getloadavg()[0]
    results: dict[Benchmark, list[Row]] = {}
    for name in names or [name for name, each in BENCHMARKS.items() if each.core or not quick()]:
        chosen = BENCHMARKS[name]
        rows = list(asyncio.run(_measured(chosen)))
        results[chosen] = rows
        click.echo(f"\n{chosen.title}\n\n{table(rows)}")
    if not names and not quick():
        picture = plot(results, PAGE.parent / "images" / "benchmarks.svg")
        PAGE.write_text(page(results, load, picture), "utf-8")
        click.echo(f"\nwritten: {PAGE}")


async def _measured(chosen: Benchmark) -> list[Row]:
    return list(await chosen.measure())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
