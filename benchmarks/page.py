"""Rows as a Markdown page, with the machine that they were measured on."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.registry import Benchmark, Row

_SETTLE_S, _NEAR = 30.0, 1.15


@dataclass(frozen=True, slots=True)
class Section:
    """What one benchmark has found. `pace_ms`: of the machine, just before it."""

    benchmark: Benchmark
    rows: Sequence[Row]
    pace_ms: float

    def __str__(self) -> str:
        pace = f"Just before, a million additions took Python {self.pace_ms:.0f} ms."
        return "\n\n".join((f"## {self.benchmark.title}", self.benchmark.method, pace, table(self.rows)))


def pace_ms() -> float:
    """How fast this machine is just now: milliseconds of a million additions in Python, the median of seven times."""

    def once() -> float:
        began, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        return 1e3 * (time.perf_counter() - began)

    return statistics.median(once() for _ in range(7))


def settled_pace_ms(best_ms: float) -> float:
    """The pace, once it is near the best; or after half a minute, whatever it is. The engine cleans up for a while."""
    deadline = time.monotonic() + _SETTLE_S
    while (pace := pace_ms()) > _NEAR * best_ms and time.monotonic() < deadline:
        time.sleep(1)
    return pace


def page(sections: Sequence[Section], load: float, picture: bool) -> str:
    parts = [
        "# Benchmarks",
        "Made by `make bench`: only the models are scripted, all else is real. Medians of the repetitions, with the "
        "smallest and the largest beside them, and the 99th percentile of a hundred or more. *Held against* is what "
        "the section's method names, measured in the same run: read the ratios, since the machine is small and not "
        "idle. Before each section it had half a minute to become nearly as fast as at its fastest, and how fast it "
        "was is told; some sections may have been measured again at another time. "
        "The process looks for garbage as seldom as `rlm` does, for all sides alike.",
        f"{_machine()}\n- load of the machine when it began: {load:.1f}",
    ]
    if picture:
        parts.append("![A sandbox and a cell, beside others](images/benchmarks.svg)")
    return "\n\n".join([*parts, *map(str, sections)]) + "\n"


def with_sections(text: str, sections: Sequence[Section]) -> str:
    """A page with these in place of its own. Raises `ValueError`: it has no such section, or is of another machine."""
    if _machine() not in text:
        raise ValueError("the page is of another machine: measure all of it anew")
    for section in sections:
        own = re.compile(rf"^## {re.escape(section.benchmark.title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
        text, found = own.subn(lambda _: f"{section}\n\n", text)  # noqa: B023
        if not found:
            raise ValueError(f"the page has no section {section.benchmark.title!r}: measure all of it anew")
    return text.rstrip("\n") + "\n"


def table(rows: Sequence[Row]) -> str:
    lines = ["| | median | smallest | largest | p99 | held against | ratio | n |", "|---" * 8 + "|"]
    for row in rows:
        if not row.samples:
            lines.append(f"| {row.what} |" + " |" * 7)
            continue
        cells = [_figure(value, row.unit) for value in (row.median, min(row.samples), max(row.samples))]
        cells.append("" if row.p99 is None else _figure(row.p99, row.unit))
        cells += ["", ""] if row.ideal is None else [_figure(row.ideal, row.unit), f"{_ratio(row.median / row.ideal)}"]
        lines.append(f"| {' | '.join([row.what, *cells, str(len(row.samples))])} |")
    return "\n".join(lines)


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _figure(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = [
        f"{os.cpu_count()} processors ({_processor()}), {memory:.0f} GiB",
        f"Linux {platform.release()}, Python {platform.python_version()}",
        f"Docker engine {_engine()}",
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _engine() -> str:
    command = ["docker", "info", "--format", "{{.ServerVersion}}, {{.Driver}}, cgroup v{{.CgroupVersion}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
