"""`python -m benchmarks [NAME...]`: measures, prints, and writes docs/benchmarks.md when all were measured.

`--page` writes the sections of these NAMEs into the page that is there.

QUICK=1 measures the core only, in a short time, and writes nothing.
"""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from pathlib import Path

import click

from benchmarks.page import Section, pace_ms, page, settled_pace_ms, table, with_sections
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
@click.option("--page", "into_page", is_flag=True, help="Write what was measured into docs/benchmarks.md.")
def main(names: tuple[str, ...], into_page: bool) -> None:
    if into_page and quick():
        raise click.UsageError("QUICK=1 writes no page: leave out one of the two.")
    if names and into_page:
        _into_page([Section(BENCHMARKS[name], (), 0.0) for name in names])  # before anything is measured for nothing
    collect_less_often()
    load = os.getloadavg()[0]
    sections: list[Section] = []
    best = min(pace_ms() for _ in range(5))
    for name in names or [name for name, each in BENCHMARKS.items() if each.core or not quick()]:
        chosen = BENCHMARKS[name]
        pace = settled_pace_ms(best)
        best = min(best, pace)
        sections.append(Section(chosen, list(asyncio.run(_measured(chosen))), pace))
        click.echo(f"\n{chosen.title} ({pace:.0f} ms for a million additions)\n\n{table(sections[-1].rows)}")
    if quick() or (names and not into_page):
        return
    picture = plot(sections, PAGE.parent / "images" / "benchmarks.svg")
    PAGE.write_text(_into_page(sections) if names else page(sections, load, picture), "utf-8")
    click.echo(f"\nwritten: {PAGE}")


def _into_page(sections: list[Section]) -> str:
    try:
        return with_sections(PAGE.read_text("utf-8"), sections)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{PAGE}: {error}") from None


async def _measured(chosen: Benchmark) -> list[Row]:
    return list(await chosen.measure())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
