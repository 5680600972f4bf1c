"""What a benchmark is: a title, how it measures, and a coroutine function that gives rows."""

from __future__ import annotations

import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing. `samples` are repetitions of it; `ideal` is what it is held against, as the method says."""

    what: str
    samples: tuple[float, ...]
    unit: str
    ideal: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p99(self) -> float | None:
        """None with fewer than a hundred samples, of which it would be the largest."""
        return statistics.quantiles(self.samples, n=100)[98] if len(self.samples) >= 100 else None


Measure = Callable[[], Awaitable[Sequence[Row]]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    name: str
    title: str
    method: str
    measure: Measure
    core: bool


BENCHMARKS: dict[str, Benchmark] = {}


def quick() -> bool:
    """Whether this is a short run: fewer repetitions, and only the benchmarks that are core."""
    return os.environ.get("QUICK") == "1"


def repeats(count: int) -> int:
    """So many of them, or a few in a short run."""
    return max(3, count // 4) if quick() else count


def benchmark(name: str, title: str, *, core: bool = False) -> Callable[[Measure], Measure]:
    """Registers a function; its docstring is the method that the page tells."""

    def register(measure: Measure) -> Measure:
        method = " ".join((measure.__doc__ or "").split())
        BENCHMARKS[name] = Benchmark(name, title, method, measure, core)
        return measure

    return register
