"""What a model is told of the cells that ran: enough to go on, never all of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, assert_never

from orchestrator.rlm.prompts import PromptStyle
from orchestrator.rlm.transcript import Cell
from orchestrator.values import Captured, CellResult, CellStatus, DeathCause, Variable, WorkerDeath

_BRIEF_CHARS: Final = 400
_VARIABLES_CHARS: Final = 2_000
_NAME_CHARS: Final = 80


class Detail(IntEnum):
    """How much of a turn is told. See `conversation` for the rule."""

    FULL = 0
    BRIEF = 1
    OUTLINE = 2
    NOTHING = 3


def cut(text: str, limit: int) -> str:
    """The text with its middle left out when it is longer than `limit`; says how long it was."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit - limit // 2], text[len(text) - limit // 2 :]
    return f"{head}\n[... {len(text) - limit:,} of {len(text):,} characters left out here ...]\n{tail}"


def cells_report(cells: Sequence[Cell], planned: int, style: PromptStyle, detail: Detail) -> str:
    """What came of a reply's cells; `planned` is how many its blocks were."""
    parts = []
    for number, cell in enumerate(cells, 1):
        if cell.result is not None:
            name = f"Block {number} of {planned}" if planned > 1 else "The block"
            parts.append(_cell_report(name, cell.result, style, detail))
    last = cells[-1].result if cells else None
    if last is None:
        return "\n\n".join(parts)
    if last.state_lost and len(cells) < planned:
        parts.append("The blocks after it did not run.")
    if detail is Detail.FULL and last.final is None:
        parts.append(_variables(last.variables))
    return "\n\n".join(part for part in parts if part)


def _cell_report(name: str, result: CellResult, style: PromptStyle, detail: Detail) -> str:
    parts = [f"{name} {_how_it_ended(result)}."]
    match detail:
        case Detail.FULL | Detail.BRIEF:
            short = detail is Detail.BRIEF
            parts += [
                _stream("stdout", result.stdout, _BRIEF_CHARS if short else style.stdout_chars),
                _stream("stderr", result.stderr, _BRIEF_CHARS if short else style.stderr_chars),
            ]
            if result.error is not None:
                traceback = cut(result.error.traceback.strip(), _BRIEF_CHARS if short else style.traceback_chars)
                parts.append(f"<traceback>\n{traceback}\n</traceback>")
            if not any(parts[1:]) and result.status is CellStatus.OK:
                parts[0] += " It printed nothing: print what you want to see."
        case Detail.OUTLINE | Detail.NOTHING:
            printed = result.stdout.total_bytes + result.stderr.total_bytes
            if printed:
                parts[0] += f" It printed {printed:,} bytes, no longer shown."
        case unreachable:
            assert_never(unreachable)
    return "\n".join(part for part in parts if part)


def _how_it_ended(result: CellResult) -> str:
    took = f"after {result.seconds:.1f} s"
    match result.status:
        case CellStatus.OK:
            return f"ran ({result.seconds:.1f} s)"
        case CellStatus.ERROR:
            what = result.error.type_name if result.error is not None else "an error"
            return f"failed with {what}; what ran before the error is kept"
        case CellStatus.TIMED_OUT:
            return (
                f"was interrupted {took}: it passed the time limit of a block. Its variables are kept. Do less work in "
                "one block, or find a faster way"
            )
        case CellStatus.INTERRUPTED:
            return f"was interrupted from outside {took}. Its variables are kept"
        case CellStatus.WORKER_DIED:
            return (
                f"ended the Python process ({_death(result.death)}). ALL YOUR VARIABLES, FUNCTIONS AND IMPORTS ARE "
                "GONE; a fresh process is up, with `context` as at the start. Make again what you need, in another way"
            )
        case unreachable:
            assert_never(unreachable)


def _death(death: WorkerDeath | None) -> str:
    if death is None:
        return "for an unknown cause"
    match death.cause:
        case DeathCause.EXITED:
            return f"it exited with status {death.code}"
        case DeathCause.CRASHED:
            return f"it crashed with signal {death.code}"
        case DeathCause.OUT_OF_MEMORY:
            return "it ran out of memory: hold less data at a time"
        case DeathCause.TIMED_OUT:
            return "it passed the time limit and could not be interrupted"
        case DeathCause.INTERRUPTED:
            return "it was to be stopped and could not be interrupted"
        case DeathCause.PROTOCOL:
            return "it wrote to a descriptor that is not its own"
        case unreachable:
            assert_never(unreachable)


def _stream(tag: str, captured: Captured, limit: int) -> str:
    if not captured.total_bytes:
        return ""
    whole = captured.head + captured.tail
    if not captured.omitted_bytes and len(whole) <= limit:
        shown = whole
    else:
        # The guest has cut already what it could not hold: its head and tail are the ends, whatever was between.
        head = (captured.head if captured.omitted_bytes else whole)[: limit - limit // 2]
        tail = (captured.tail if captured.omitted_bytes else whole)[-(limit // 2) :]
        shown = f"{head}\n[... cut here: {captured.total_bytes:,} bytes were printed in all ...]\n{tail}"
    ending = "" if shown.endswith("\n") else "\n"
    return f"<{tag}>\n{shown}{ending}</{tag}>"


def _variables(variables: Sequence[Variable]) -> str:
    if not variables:
        return ""
    told: list[str] = []
    room = _VARIABLES_CHARS
    for variable in variables:
        size = f", {variable.size}" if variable.size else ""
        text = f"{variable.name[:_NAME_CHARS]} ({variable.type_name[:_NAME_CHARS]}{size[:_NAME_CHARS]})"
        room -= len(text) + 2
        if room < 0:
            told.append(f"and {len(variables) - len(told)} more")
            break
        told.append(text)
    return f"Variables: {', '.join(told)}"
