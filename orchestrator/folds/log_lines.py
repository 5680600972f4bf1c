"""`[Depth d] ...` log lines: the loop's and the REPL's, each on its own standard logger.

`orchestrator.loop` tells what the RLMs decide, `orchestrator.repl` what their code does. INFO is one line for each
event that a person would want to hear of; DEBUG adds code, output, prompts and replies.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum

from orchestrator import events as ev
from orchestrator.folds.printable import one_line
from orchestrator.values import CellResult, CellStatus, Usage


class Topic(StrEnum):
    LOOP = "orchestrator.loop"
    REPL = "orchestrator.repl"


@dataclass(frozen=True, slots=True)
class LogLine:
    topic: Topic
    level: int
    depth: int
    text: str

    def __str__(self) -> str:
        return f"[Depth {self.depth}] {self.text}"


class LogSink:
    """A sink that hands the lines to standard logging."""

    def __call__(self, record: ev.Record) -> None:
        for line in log_lines(record):
            logging.getLogger(line.topic).log(line.level, "%s", line)


def log_lines(record: ev.Record) -> tuple[LogLine, ...]:
    """What to log of a record; most records are worth one line, streamed pieces none."""
    depth, event = record.depth, record.event

    def loop(text: str, level: int = logging.INFO) -> LogLine:
        return LogLine(Topic.LOOP, level, depth, text)

    def repl(text: str, level: int = logging.INFO) -> LogLine:
        return LogLine(Topic.REPL, level, depth, text)

    match event:
        case ev.RunStarted():
            models = one_line(" > ".join(event.models), 400)
            return (loop(f"run {event.run_id} started: max_depth={event.max_depth}, models {models}"),)
        case ev.RunEnded():
            spent = event.spent
            return (
                loop(
                    f"run {event.outcome} after {event.seconds:.1f} s: {spent.calls} model calls, "
                    f"{spent.usage.total_tokens:,} tokens, {_cost(spent.cost_usd, spent.unpriced_calls)}"
                    + _because(event.error)
                ),
            )
        case ev.RlmStarted():
            info = event.context
            about = f"; context {info.type_name}, {info.length:,} {info.unit}" if info else ""
            return (loop(f"RLM started on {one_line(event.model, 80)}: {one_line(event.query, 120)}{about}"),)
        case ev.RlmEnded(outcome=ev.Outcome.OK):
            return (loop(f"RLM answered ({event.ending}): {one_line(event.answer or '', 120)}"),)
        case ev.RlmEnded():
            return (loop(f"RLM {event.outcome}{_because(event.error)}", logging.WARNING),)
        case ev.IterationStarted():
            last = ", the last plain question" if event.last_resort else ""
            return (loop(f"iteration {event.number}/{event.of}{last}"),)
        case ev.TimeRanShort(seconds_left=left):
            return (loop(f"time ran short: {left:.1f} s are left for the best answer so far", logging.WARNING),)
        case ev.ModelCallStarted():
            return tuple(
                loop(f"{message.role}: {one_line(message.content, 400)}", logging.DEBUG)
                for message in event.messages[-1:]
            )
        case ev.ModelRetried():
            reason = one_line(event.reason, 160)
            retry = f"model attempt {event.attempt} failed, next in {event.wait_s:.1f} s: {reason}"
            return (loop(retry, logging.WARNING),)
        case ev.ModelCallEnded(outcome=ev.Outcome.OK):
            source = "cache" if event.cached else f"{event.seconds:.1f} s"
            about = "about " if event.estimated else ""
            heard = f"{one_line(event.model, 80)} replied in {source}: {about}{_tokens(event.usage)}"
            return (loop(heard), loop(f"reply: {one_line(event.text or '', 400)}", logging.DEBUG))
        case ev.ModelCallEnded():
            return (loop(f"{one_line(event.model, 80)} {event.outcome}{_because(event.error)}", logging.WARNING),)
        case ev.SandboxStarted():
            kind = "warm" if event.warm else "cold"
            return (repl(f"sandbox {event.name} {kind} after {event.seconds * 1000:.0f} ms"),)
        case ev.SandboxEnded(outcome=ev.Outcome.FAILED):
            return (repl(f"sandbox {event.name} failed{_because(event.error)}", logging.WARNING),)
        case ev.SandboxEnded():
            return (repl(f"sandbox {event.name} gone", logging.DEBUG),)
        case ev.CellStarted(code=code):
            lines = code.count("\n") + 1
            return (
                repl(f"running a cell of {lines} line{'s' if lines != 1 else ''}"),
                repl(f"code: {one_line(code, 400)}", logging.DEBUG),
            )
        case ev.CellEnded(result=None):
            return (repl(f"cell {event.outcome}{_because(event.error)}", logging.WARNING),)
        case ev.CellEnded(result=CellResult() as result):
            return (
                repl(_cell(result), logging.INFO if result.status is CellStatus.OK else logging.WARNING),
                repl(f"output: {one_line(result.stdout.text, 400)}", logging.DEBUG),
            )
        case ev.BatchStarted(size=size) if size > 1:
            distinct = f" ({event.distinct:,} distinct)" if event.distinct != size else ""
            return (repl(f"llm_batch of {size:,}{distinct}, at most {event.max_concurrent} at once"),)
        case ev.BatchEnded(failed=failed, unasked=unasked):
            failures = f", {failed:,} failed" if failed else ""
            failures += f", {unasked:,} were not asked any more" if unasked else ""
            return (repl(f"answers are back{failures}", logging.WARNING if failed else logging.DEBUG),)
        case ev.QueryStarted():
            kind = "sub-RLM" if event.recursive else "sub-call"
            return (repl(f"{kind} {event.index}: {one_line(event.prompt, 120)}", logging.DEBUG),)
        case ev.QueryEnded(failure=failure) if failure is not None:
            return (repl(f"sub-call failed ({failure}){_because(event.error)}", logging.WARNING),)
        case ev.NoticeGiven(text=text):
            return (loop(one_line(text, 400)),)
        case _:
            return ()


def _cell(result: CellResult) -> str:
    status = result.status.replace("_", " ")
    text = f"cell {status} in {result.seconds:.2f} s, {result.stdout.total_bytes:,} bytes printed"
    if result.error:
        text += f": {one_line(result.error.type_name, 80)}: {one_line(result.error.message, 160)}"
    if result.death:
        text += f" ({result.death.cause.replace('_', ' ')}; its variables are gone)"
    if result.final:
        text += f"; final answer: {one_line(result.final.text, 80)}"
    return text


def _tokens(usage: Usage | None) -> str:
    return f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out" if usage else "tokens unknown"


def _cost(cost_usd: float, unpriced_calls: int) -> str:
    if not unpriced_calls:
        return f"${cost_usd:.4f}"
    return f"${cost_usd:.4f} and {unpriced_calls} calls of unknown cost" if cost_usd else "cost unknown"


def _because(error: str) -> str:
    return f": {one_line(error, 200)}" if error else ""
