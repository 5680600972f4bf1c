"""What a log line says of an event: words and numbers, and what people and models wrote only when asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from orchestrator import events as ev
from orchestrator.folds.printable import one_line
from orchestrator.values import CellResult

Field = str | int | float | bool | None

_ERROR_CHARACTERS = 300
_CONTENT_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Line:
    level: int
    text: str
    fields: dict[str, Field]


def line(event: ev.Event, *, content: bool) -> Line | None:
    """None for events that are not worth a line at any level."""

    def told(text: str | None) -> dict[str, Field]:
        return {"content": one_line(text, _CONTENT_CHARACTERS)} if content and text else {}

    match event:
        case ev.RunStarted():
            return Line(
                logging.INFO,
                "run started",
                {
                    "models": ",".join(event.models),
                    "max_depth": event.max_depth,
                    "context_bytes": event.context.size_bytes if event.context else 0,
                    **told(event.query),
                },
            )
        case ev.RunEnded():
            return Line(
                _level(event.outcome),
                f"run {event.outcome}",
                {
                    "outcome": event.outcome.value,
                    "ending": event.ending.value if event.ending else None,
                    "seconds": round(event.seconds, 3),
                    "calls": event.spent.calls,
                    "input_tokens": event.spent.usage.input_tokens,
                    "output_tokens": event.spent.usage.output_tokens,
                    "cost_usd": event.spent.cost_usd,
                    "sandboxes": event.spent.sandboxes,
                    **_error(event.error),
                    **told(event.answer),
                },
            )
        case ev.RlmStarted():
            return Line(logging.DEBUG, "RLM started", {"model": event.model, **told(event.query)})
        case ev.RlmEnded():
            return Line(
                _level(event.outcome, logging.DEBUG),
                f"RLM {event.outcome}",
                {"outcome": event.outcome.value, **_error(event.error), **told(event.answer)},
            )
        case ev.IterationStarted():
            fields: dict[str, Field] = {"iteration": event.number, "of": event.of, "last_resort": event.last_resort}
            return Line(logging.INFO, "iteration started", fields)
        case ev.TimeRanShort():
            return Line(logging.WARNING, "time ran short", {"seconds_left": round(event.seconds_left, 3)})
        case ev.ModelRetried():
            return Line(
                logging.WARNING,
                "model call is tried again",
                {"attempt": event.attempt, "wait_s": round(event.wait_s, 3), **_error(event.reason)},
            )
        case ev.ModelCallEnded():
            usage = event.usage
            return Line(
                _level(event.outcome),
                f"model call {event.outcome}",
                {
                    "model": event.model,
                    "outcome": event.outcome.value,
                    "cached": event.cached,
                    "seconds": round(event.seconds, 3),
                    "input_tokens": usage.input_tokens if usage else None,
                    "output_tokens": usage.output_tokens if usage else None,
                    "cost_usd": event.cost_usd,
                    "estimated": event.estimated,
                    **_error(event.error),
                    **told(event.text),
                },
            )
        case ev.SandboxStarted():
            return Line(
                logging.INFO,
                "sandbox started",
                {"sandbox": event.name, "warm": event.warm, "seconds": round(event.seconds, 4)},
            )
        case ev.SandboxEnded():
            return Line(
                _level(event.outcome, logging.DEBUG),
                f"sandbox ended {event.outcome}",
                {"sandbox": event.name, "outcome": event.outcome.value, **_error(event.error)},
            )
        case ev.CellStarted():
            return Line(logging.DEBUG, "cell started", {"code_lines": event.code.count("\n") + 1, **told(event.code)})
        case ev.CellEnded(result=CellResult() as result):
            # An exception's message quotes data: only its type is told.
            return Line(
                logging.INFO,
                f"cell ended {result.status.replace('_', ' ')}",
                {
                    "status": result.status.value,
                    "seconds": round(result.seconds, 3),
                    "stdout_bytes": result.stdout.total_bytes,
                    "exception": one_line(result.error.type_name, 100) if result.error else None,
                    "death": result.death.cause.value if result.death else None,
                    "final": result.final is not None,
                    **told(result.stdout.text),
                },
            )
        case ev.CellEnded():
            return Line(_level(event.outcome), f"cell {event.outcome}", _error(event.error))
        case ev.BatchEnded():
            level = logging.WARNING if event.failed else logging.DEBUG
            return Line(level, "batch ended", {"outcome": event.outcome.value, "failed": event.failed})
        case ev.QueryEnded() if event.failure is not None:
            return Line(logging.WARNING, "query failed", {"failure": event.failure.value, **_error(event.error)})
        case ev.NoticeGiven():
            return Line(logging.INFO, one_line(event.text, 400), {})
        case _:
            return None


def _level(outcome: ev.Outcome, fine: int = logging.INFO) -> int:
    return logging.WARNING if outcome is ev.Outcome.FAILED else fine


def _error(text: str) -> dict[str, Field]:
    return {"error": one_line(text, _ERROR_CHARACTERS)} if text else {}
