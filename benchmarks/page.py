"""Rows as a Markdown page, with the machine that they were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.registry import Benchmark, Row


def page(results: Mapping[Benchmark, Sequence[Row]], load: float, picture: bool) -> str:
    parts = [
        "# Benchmarks",
        "Made by `make bench`: only the models are scripted, all else is real. Medians of the repetitions, with the "
        "smallest and the largest beside them, and the 99th percentile of a hundred or more. *Held against* is what "
        "the section's method names, measured in the same run: read the ratios, since the machine is small and not "
        "idle. The process looks for garbage as seldom as `rlm` does, for all sides alike.",
        _machine(load),
    ]
    if picture:
        parts.append("![A sandbox and a cell, beside others](images/benchmarks.svg)")
    for each, rows in results.items():
        parts += [f"## {each.title}", each.method, table(rows)]
    return "\n\n".join(parts) + "\n"


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


def _machine(load: float) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = [
        f"{os.cpu_count()} processors ({_processor()}), {memory:.0f} GiB",
        f"Linux {platform.release()}, Python {platform.python_version()}",
        f"Docker engine {_engine()}",
        f"load of the machine when it began: {load:.1f}",
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
