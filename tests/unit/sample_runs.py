"""Runs as events, for the tests of whatever reads events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator import events as ev
from orchestrator.values import (
    Captured,
    CellResult,
    CellStatus,
    CodeError,
    ContextInfo,
    ContextKind,
    Ending,
    FailureReason,
    FinalAnswer,
    FinishReason,
    Limits,
    Message,
    OutputStream,
    Role,
    Spent,
    Usage,
)

INFO = ContextInfo(ContextKind.TEXT, "str", 12_000, 12_000, "characters", "Once", "end.")

USAGE = Usage(100, 20)


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Script:
    """Writes events as the real parts do, at a clock that the test moves."""

    sinks: tuple[ev.Sink, ...] = ()
    clock: Clock = field(default_factory=Clock)
    sandboxes: dict[int, ev.Span] = field(default_factory=dict)
    spent: Spent = field(default_factory=lambda: Spent(calls=5, usage=Usage(500, 100), cost_usd=0.023, sandboxes=2))

    def __post_init__(self) -> None:
        self.log = ev.EventLog(*self.sinks, clock=self.clock)
        self.run = self.log.root()

    def start(self, query: str = "Who did it?") -> None:
        self.run.emit(ev.RunStarted("run_1", query, INFO, 2, ("big", "small", "small"), Limits(max_calls=50), "0.1.0"))

    def end(self, answer: str = "The gardener.", outcome: ev.Outcome = ev.Outcome.OK) -> None:
        error = "" if outcome is ev.Outcome.OK else "model 'big' failed"
        self.run.emit(ev.RunEnded(outcome, answer, Ending.FINAL, self.spent, 4.2, error))

    def rlm(self, parent: ev.Span, depth: int = 0, query: str = "Who did it?") -> ev.Span:
        span = parent.child(ev.SpanKind.RLM, depth=depth)
        span.emit(ev.RlmStarted(query, INFO, depth, 2, 20 // (depth + 1), "big" if depth == 0 else "small"))
        self.sandboxes[span.id] = span.child(ev.SpanKind.SANDBOX)
        self.sandboxes[span.id].emit(ev.SandboxStarted(f"sandbox-{depth}", 0.02, True))
        return span

    def end_rlm(self, rlm: ev.Span, answer: str) -> None:
        self.sandboxes.pop(rlm.id).emit(ev.SandboxEnded(f"sandbox-{rlm.depth}", ev.Outcome.OK))
        rlm.emit(ev.RlmEnded(ev.Outcome.OK, answer, Ending.FINAL))

    def iteration(self, rlm: ev.Span, number: int = 1) -> ev.Span:
        span = rlm.child(ev.SpanKind.ITERATION)
        span.emit(ev.IterationStarted(number, 20))
        return span

    def call(
        self,
        parent: ev.Span,
        *,
        model: str = "big",
        depth: int | None = None,
        cost: float | None = 0.01,
        cached: bool = False,
        outcome: ev.Outcome = ev.Outcome.OK,
        usage: Usage | None = USAGE,
        text: str = "ok",
    ) -> None:
        span = parent.child(ev.SpanKind.MODEL, depth=depth)
        span.emit(ev.ModelCallStarted(model, (Message(Role.USER, "Look."),)))
        span.emit(ev.ModelTextStreamed(text))
        error = "" if outcome is ev.Outcome.OK else "no connection"
        span.emit(ev.ModelCallEnded(outcome, text, FinishReason.STOP, usage, cost, cached, model, 1.5, error))

    def cell(self, iteration: ev.Span, code: str = "print('hi')") -> ev.Span:
        span = iteration.child(ev.SpanKind.CELL)
        span.emit(ev.CellStarted(code))
        return span

    def batch(self, cell: ev.Span, size: int, distinct: int | None = None) -> ev.Span:
        span = cell.child(ev.SpanKind.BATCH)
        span.emit(ev.BatchStarted(size, distinct or size, 10))
        return span

    def query(self, batch: ev.Span, index: int = 0, *, recursive: bool = False, prompt: str = "") -> ev.Span:
        span = batch.child(ev.SpanKind.QUERY)
        span.emit(ev.QueryStarted(index, prompt or f"Part {index}?", recursive))
        return span

    def answer(self, query: ev.Span, *, failed: bool = False) -> None:
        if failed:
            query.emit(ev.QueryEnded(ev.Outcome.FAILED, None, FailureReason.MODEL, "the model failed"))
        else:
            query.emit(ev.QueryEnded(ev.Outcome.OK, "It says so."))


def whole_run(*sinks: ev.Sink) -> None:
    """Two iterations of a root: a batch of three (one fails, one is an RLM), an error, and the final answer."""
    script = Script(sinks)
    script.start()
    root = script.rlm(script.run)
    first = script.iteration(root)
    script.call(first)
    cell = script.cell(first, "answers = llm_batch(parts)\nanswers[0]")
    batch = script.batch(cell, 3)
    for index in range(3):
        query = script.query(batch, index, recursive=index == 2)
        if index == 2:
            child = script.rlm(query, 1, "Part 2?")
            inner = script.iteration(child)
            script.call(inner, model="small", cost=0.001)
            inner.emit(ev.IterationEnded(ev.Outcome.OK))
            script.end_rlm(child, "Inner.")
        else:
            script.call(query, model="small", depth=1, cost=0.001)
        script.answer(query, failed=index == 1)
    batch.emit(ev.BatchEnded(ev.Outcome.OK, 1))
    cell.emit(ev.CellPrinted(OutputStream.STDOUT, 0, "seen\n"))
    error = CodeError("IndexError", "no more", "Traceback (most recent call last):\n  line 2\nIndexError: no more")
    cell.emit(ev.CellEnded(ev.Outcome.OK, CellResult(CellStatus.ERROR, Captured("seen\n", "", 5), error=error)))
    first.emit(ev.IterationEnded(ev.Outcome.OK))
    script.clock.now += 3
    second = script.iteration(root, 2)
    script.call(second)
    cell = script.cell(second, "FINAL('The gardener.')")
    final = FinalAnswer("The gardener.", "str", 13)
    cell.emit(ev.CellEnded(ev.Outcome.OK, CellResult(CellStatus.OK, final=final)))
    second.emit(ev.IterationEnded(ev.Outcome.OK))
    script.end_rlm(root, "The gardener.")
    script.end()


def records_of(run: Callable[..., None]) -> list[ev.Record]:
    records: list[ev.Record] = []
    run(records.append)
    return records
