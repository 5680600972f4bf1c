"""What is done with a reply, given how it ended: the cells to run, the answer in it, what to tell the model. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.rlm.fences import Block
from orchestrator.rlm.final_text import FinalText, FinalVariable
from orchestrator.rlm.parsing import parse_reply
from orchestrator.rlm.transcript import Said
from orchestrator.values import FinishReason

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Reading:
    cells: tuple[str, ...] = ()
    answer: str | None = None  # a textual FINAL(...); "" is an answer
    notices: tuple[str, ...] = ()  # for the model, after the results of its cells


def read_reply(said: Said) -> Reading:
    """Empty, refused and cut replies have a reading too: the model is told, and the iteration is used."""
    if said.finish_reason is FinishReason.REFUSAL:
        return Reading(notices=("You declined to go on. If some part of the task can be done, do that part.",))
    if not said.text.strip():
        return Reading(notices=(_nothing_said(said.finish_reason),))
    parsed = parse_reply(said.text)
    blocks = parsed.blocks
    notices = [_how_cut(said.finish_reason)] if _is_cut(said) else []
    # The end of a cut reply is missing: half a block would do something that nobody wrote.
    if _is_cut(said) and blocks and not blocks[-1].closed:
        notices.append("Your last code block was cut off with it and did not run. Write shorter blocks.")
        blocks = blocks[:-1]
    if parsed.ignored_blocks:
        notices.append(_ignored(parsed.ignored_blocks))
    match parsed.textual_final:
        case FinalText(text):
            return Reading(answer=text)
        case FinalVariable(code):
            return Reading(cells=(code,), notices=tuple(notices))
        case None:
            pass
    if not blocks and not notices:
        notices.append(
            "Your reply had no code and no final answer. Write one ```repl block; when you know the answer, call "
            "FINAL(answer) in it."
        )
    return Reading(tuple(block.code for block in blocks), notices=tuple(notices))


def _is_cut(said: Said) -> bool:
    return said.finish_reason in (FinishReason.LENGTH, FinishReason.CONTENT_FILTER)


def _how_cut(finish_reason: FinishReason) -> str:
    if finish_reason is FinishReason.CONTENT_FILTER:
        return "A content filter cut your reply off. Put it in other words."
    return "Your reply reached the output limit and was cut off. Be shorter."


def _nothing_said(finish_reason: FinishReason) -> str:
    match finish_reason:
        case FinishReason.LENGTH:
            return "Your reply reached the output limit before it said anything. Think less, and write one short block."
        case FinishReason.CONTENT_FILTER:
            return "A content filter removed your reply. Put it in other words."
        case _:
            return "Your reply was empty. Write one ```repl block; when you know the answer, call FINAL(answer) in it."


def _ignored(blocks: Iterable[Block]) -> str:
    seen = list(blocks)
    names = [f"line {block.line} ({_why_ignored(block)})" for block in seen[:_MOST_NAMED]]
    if len(seen) > _MOST_NAMED:
        names.append(f"and {len(seen) - _MOST_NAMED} more")
    return f"Not run: the code blocks at {', '.join(names)}. Only ```repl blocks with code in them run."


def _why_ignored(block: Block) -> str:
    if not block.code.strip():
        return "empty"
    return f"tagged {block.tag[:20]!r}" if block.tag else "no tag"
