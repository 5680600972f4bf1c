"""What an RLM does next. Pure: no I/O, no clock, no randomness; the same transcript always leads to the same step."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import ModelFailure
from orchestrator.rlm.conversation import conversation
from orchestrator.rlm.final_text import FinalVariable
from orchestrator.rlm.parsing import answer_in, parse_reply
from orchestrator.rlm.prompts import PromptStyle
from orchestrator.rlm.reading import read_reply
from orchestrator.rlm.transcript import Said, Transcript, Turn
from orchestrator.values import Ending, FinishReason, Message


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the model. `last_resort`: out of iterations or of time, its reply is the answer."""

    messages: tuple[Message, ...]
    last_resort: bool = False


@dataclass(frozen=True, slots=True)
class RunCell:
    code: str


@dataclass(frozen=True, slots=True)
class Finish:
    answer: str
    ending: Ending


@dataclass(frozen=True, slots=True)
class GiveUp:
    """There is no answer, not even a poor one."""

    kind: ModelFailure
    reason: str


Step = Ask | RunCell | Finish | GiveUp


def next_step(transcript: Transcript, style: PromptStyle | None = None) -> Step:
    """All cells of a reply run in order, up to one that gives the final answer or loses the variables.

    `style` shapes the messages of an `Ask` and nothing else: no decision depends on it.
    """
    style = style or PromptStyle()
    if not transcript.turns:
        return _ask(transcript, style)
    turn = transcript.turns[-1]
    if turn.said is None:
        return Ask(conversation(transcript, style), turn.last_resort)
    if turn.last_resort:
        return _last_words(turn, turn.said, _how_far(transcript))
    return _after_reply(turn, turn.said, transcript.time_short) or _ask(transcript, style)


def _after_reply(turn: Turn, said: Said, time_short: bool) -> Step | None:
    """What the reply still asks for; None when all of it is done, or there is no time for the rest."""
    if turn.cells:
        result = turn.cells[-1].result
        if result is None:
            return None if time_short else RunCell(turn.cells[-1].code)
        if result.final is not None:
            return Finish(result.final.text, Ending.FINAL)
        if result.state_lost:
            # The blocks that are left were written for variables that are gone.
            return None
    reading = read_reply(said)
    if reading.answer is not None:
        return Finish(reading.answer, Ending.FINAL)
    if len(turn.cells) < len(reading.cells) and not time_short:
        return RunCell(reading.cells[len(turn.cells)])
    return None


def _ask(transcript: Transcript, style: PromptStyle) -> Ask:
    last_resort = transcript.time_short or len(transcript.turns) >= transcript.start.max_iterations
    return Ask(conversation(transcript.with_turn(last_resort=last_resort), style), last_resort)


def _how_far(transcript: Transcript) -> str:
    return "in time" if transcript.time_short else f"within {transcript.start.max_iterations} iterations"


def _last_words(turn: Turn, said: Said, how_far: str) -> RunCell | Finish | GiveUp:
    """The text is the answer, and code is not run; but a variable that it names as the answer is looked up."""
    final = parse_reply(said.text).textual_final
    if isinstance(final, FinalVariable) and said.finish_reason is not FinishReason.REFUSAL:
        result = turn.cells[-1].result if turn.cells else None
        if result is None:
            return RunCell(final.code)
        if result.final is not None:
            return Finish(result.final.text, Ending.BEST_EFFORT)
    answer = answer_in(said.text)
    if said.finish_reason is FinishReason.REFUSAL:
        return GiveUp(ModelFailure.REFUSED, f"no answer {how_far}, and it declined to give one then")
    if not answer:
        return GiveUp(ModelFailure.MALFORMED, f"no answer {how_far}, and an empty one when asked for it then")
    return Finish(answer, Ending.BEST_EFFORT)
