"""Whether recorded runs would still go the same way. Pure.

A run's events are all that its decisions depend on: each RLM's transcript is folded from them again, and at each point
where the driver acted, `next_step` must decide the same. What the model is told may change (prompts get better); what
is done with its replies may not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from orchestrator.errors import RunNotReplayable
from orchestrator.events import (
    CellEnded,
    CellStarted,
    IterationEnded,
    IterationStarted,
    ModelCallEnded,
    Outcome,
    Record,
    RlmEnded,
    RlmStarted,
    SpanKind,
)
from orchestrator.rlm.steps import Ask, Finish, RunCell, Step, next_step
from orchestrator.rlm.transcript import Transcript, fold

_SHOWN_CHARS: Final = 200

# What is emitted on a span of this kind belongs to the RLM that its parent belongs to. A model call or an RLM beneath a
# query does not: it is the sub-call's.
_OWN_KINDS: Final = frozenset({SpanKind.ITERATION, SpanKind.MODEL, SpanKind.CELL})


@dataclass(frozen=True, slots=True)
class ReplayedRlm:
    """One RLM of a run, as its events tell it. `ended` is None when the record stops before its end."""

    span_id: int
    transcript: Transcript
    ended: RlmEnded | None = None


def replay(records: Iterable[Record]) -> tuple[ReplayedRlm, ...]:
    """The RLMs of a run in the order in which they started. Raises `RunNotReplayable` naming the first difference."""
    rlms: dict[int, ReplayedRlm] = {}
    owners: dict[int, int] = {}  # span -> the RLM span it belongs to
    for record in records:
        if isinstance(record.event, RlmStarted):
            owners[record.span_id] = record.span_id
        elif record.parent_id in owners and record.kind in _OWN_KINDS:
            owners[record.span_id] = owners[record.parent_id]
        owner = owners.get(record.span_id)
        if owner is not None:
            rlms[owner] = _advance(rlms.get(owner), owner, record)
    return tuple(rlms.values())


def _advance(rlm: ReplayedRlm | None, span_id: int, record: Record) -> ReplayedRlm:
    event = record.event
    before = rlm.transcript if rlm is not None else None
    if before is not None:
        _check(before, record)
    try:
        transcript = fold(before, event)
    except ValueError as error:
        raise RunNotReplayable(f"{_place(record)}: {error}") from error
    ended = event if isinstance(event, RlmEnded) else None
    return replace(rlm, transcript=transcript, ended=ended) if rlm is not None else ReplayedRlm(span_id, transcript)


def _check(before: Transcript, record: Record) -> None:
    """Compares what the driver did with what `next_step` says now, where the driver did something."""
    match record.event:
        case IterationStarted(number=number, last_resort=last_resort):
            if number != len(before.turns) + 1:
                raise RunNotReplayable(f"{_place(record)}: iteration {len(before.turns) + 1} is not in the record")
            step = next_step(before)
            if not isinstance(step, Ask) or step.last_resort != last_resort:
                raise _difference(record, f"asked the model{' for its best answer' if last_resort else ''}", step)
        case ModelCallEnded(outcome=Outcome.OK):
            if not before.turns or before.turns[-1].said is not None:
                raise RunNotReplayable(f"{_place(record)}: a reply that no question asked for")
        case CellStarted(code=code):
            step = next_step(before)
            if before.turns and before.turns[-1].said is None:
                raise RunNotReplayable(f"{_place(record)}: the reply before this cell is not in the record")
            if step != RunCell(code):
                raise _difference(record, f"ran {_shown(code)}", step)
        case CellEnded() | IterationEnded():
            pass
        case RlmEnded(outcome=Outcome.OK, answer=answer, ending=ending):
            step = next_step(before)
            if not isinstance(step, Finish) or (step.answer, step.ending) != (answer, ending):
                raise _difference(record, f"answered {_shown(answer or '')} ({ending})", step)
        case _:
            pass


def _difference(record: Record, did: str, step: Step) -> RunNotReplayable:
    return RunNotReplayable(f"{_place(record)}: the run {did}; now it would {_told(step)}")


def _place(record: Record) -> str:
    return f"event {record.seq} (depth {record.depth}, {type(record.event).__name__})"


def _told(step: Step) -> str:
    match step:
        case Ask(last_resort=last_resort):
            return f"ask the model{' for its best answer' if last_resort else ''}"
        case RunCell(code):
            return f"run {_shown(code)}"
        case Finish(answer, ending):
            return f"answer {_shown(answer)} ({ending})"
        case _:
            return f"give up: {step.reason}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
