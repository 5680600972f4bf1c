"""The frozen history of one RLM, folded from its events. Pure.

A transcript is all that `next_step` decides from, and events are all that a transcript is made of: so a journal replays
into the same transcript, and a recorded run is a test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.events import (
    CellEnded,
    CellStarted,
    Event,
    IterationStarted,
    ModelCallEnded,
    Outcome,
    RlmStarted,
    TimeRanShort,
)
from orchestrator.values import CellResult, FinishReason, Reply


@dataclass(frozen=True, slots=True)
class Said:
    """What the model replied. Empty and null replies are `""`."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Cell:
    code: str
    result: CellResult | None = None  # None while it runs, or when its sandbox was lost


@dataclass(frozen=True, slots=True)
class Turn:
    """One iteration: a question to the model, its reply, and the cells that ran for it."""

    last_resort: bool = False
    said: Said | None = None  # None until the model has replied
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """`earlier` is the transcript of the query before this one, when several share a sandbox and its variables.

    `time_short`: there is time for one last question, and for nothing else.
    """

    start: RlmStarted
    turns: tuple[Turn, ...] = ()
    earlier: Transcript | None = None
    time_short: bool = False

    def with_turn(self, *, last_resort: bool = False) -> Transcript:
        return replace(self, turns=(*self.turns, Turn(last_resort)))

    def with_reply(self, text: str | None, finish_reason: FinishReason | None) -> Transcript:
        said = Said(text or "", finish_reason or FinishReason.OTHER)
        return self._with_last(replace(self.turns[-1], said=said))

    def with_cell(self, code: str) -> Transcript:
        turn = self.turns[-1]
        return self._with_last(replace(turn, cells=(*turn.cells, Cell(code))))

    def with_result(self, result: CellResult) -> Transcript:
        turn = self.turns[-1]
        return self._with_last(replace(turn, cells=(*turn.cells[:-1], replace(turn.cells[-1], result=result))))

    def _with_last(self, turn: Turn) -> Transcript:
        return replace(self, turns=(*self.turns[:-1], turn))


def fold(transcript: Transcript | None, event: Event) -> Transcript:
    """The transcript after one more event of the same RLM, its own iterations, model calls and cells included.

    Events that no decision depends on leave it as it is. Raises `ValueError` when the event cannot follow: before an
    `RlmStarted`, a reply outside an iteration, a result without its cell.
    """
    if isinstance(event, RlmStarted):
        return Transcript(event, earlier=transcript)
    if transcript is None:
        raise ValueError(f"{type(event).__name__} comes before RlmStarted")
    turn = transcript.turns[-1] if transcript.turns else None
    match event:
        case IterationStarted(last_resort=last_resort):
            return transcript.with_turn(last_resort=last_resort)
        case ModelCallEnded(outcome=Outcome.OK):
            if turn is None or turn.said is not None:
                raise ValueError("a model's reply comes outside an iteration, or as a second one in it")
            return transcript.with_reply(event.text, event.finish_reason)
        case CellStarted(code=code):
            if turn is None or turn.said is None:
                raise ValueError("a cell starts before the model has replied")
            return transcript.with_cell(code)
        case TimeRanShort():
            # A turn that has come to nothing is not told: its reply was not waited for, or is too late to be acted on.
            turns = transcript.turns if turn is None or turn.cells else transcript.turns[:-1]
            return replace(transcript, turns=turns, time_short=True)
        case CellEnded(result=CellResult() as result):
            if turn is None or not turn.cells or turn.cells[-1].result is not None:
                raise ValueError("a cell ends that has not started")
            return transcript.with_result(result)
        case _:
            return transcript


def fold_reply(transcript: Transcript, reply: Reply) -> Transcript:
    """What folding the `ModelCallEnded` of this reply gives.

    The event itself is emitted below the driver, by the wrapper that meters; the driver has only the reply.
    """
    return transcript.with_reply(reply.text, reply.finish_reason)
