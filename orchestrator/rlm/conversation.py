"""The messages that a model sees: a transcript, told. Pure.

The rule for long histories: each turn is told in full, then the total is looked at after each turn in order. When it
passes `PromptStyle.history_chars`, the oldest turns are shortened, one step at a time over all turns but the latest,
until the total is at most half of that. The steps: outputs cut to a few hundred characters and variables left out;
outputs left out, only how each cell ended and how much it printed is kept; the reply itself cut. Going down to half at
once keeps the beginning of the conversation the same for many turns, which is what providers' prompt caches need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from orchestrator.rlm.cell_report import Detail, cells_report, cut
from orchestrator.rlm.prompts import PromptStyle, system_prompt
from orchestrator.rlm.reading import read_reply
from orchestrator.rlm.transcript import Said, Transcript, Turn
from orchestrator.values import ContextInfo, FinishReason, Message, Role

_CUT_REPLY_CHARS: Final = 1_500
_REMINDED_QUERY_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True)
class _Told:
    """A turn that is over, as the messages it becomes."""

    transcript: Transcript  # that it belongs to
    number: int  # from 1
    detail: Detail

    @property
    def turn(self) -> Turn:
        return self.transcript.turns[self.number - 1]

    def reply(self) -> str:
        said = self.turn.said or Said("", FinishReason.OTHER)
        # Some APIs turn down an empty message.
        text = said.text if said.text.strip() else "(an empty reply)"
        return cut(text, _CUT_REPLY_CHARS) if self.detail is Detail.NOTHING else text

    def results(self, style: PromptStyle) -> str:
        said = self.turn.said or Said("", FinishReason.OTHER)
        reading = read_reply(said)
        parts = [cells_report(self.turn.cells, len(reading.cells), style, self.detail), *reading.notices]
        return "\n\n".join(part for part in parts if part)

    def size(self, style: PromptStyle) -> int:
        return len(self.reply()) + len(self.results(style))


def conversation(transcript: Transcript, style: PromptStyle) -> tuple[Message, ...]:
    """The messages that ask for the last turn of `transcript`, which has no reply yet; what came before is told."""
    messages = [Message(Role.SYSTEM, system_prompt(transcript.start, style))]
    told = _told(transcript, style)
    at = 0
    chain = _chain(transcript)
    carried = ""  # what the next user message begins with
    for asked in chain:
        opening = _opening(asked) if asked.earlier is None else _next_query(asked)
        carried = f"{carried}\n\n{opening}" if carried else opening
        turns = asked.turns[:-1] if asked is transcript else asked.turns
        for number in range(1, len(turns) + 1):
            messages.append(Message(Role.USER, f"{carried}\n\n{_asking(asked, number)}"))
            messages.append(Message(Role.ASSISTANT, told[at].reply()))
            carried = told[at].results(style)
            at += 1
    asking = _asking(transcript, len(transcript.turns))
    messages.append(Message(Role.USER, f"{carried}\n\n{asking}" if carried else asking))
    return tuple(messages)


def _chain(transcript: Transcript) -> list[Transcript]:
    chain = [transcript]
    while (earlier := chain[-1].earlier) is not None:
        chain.append(earlier)
    return chain[::-1]


def _told(transcript: Transcript, style: PromptStyle) -> list[_Told]:
    told: list[_Told] = []
    sizes: list[int] = []
    for asked in _chain(transcript):
        last = len(asked.turns) - 1 if asked is transcript else len(asked.turns)
        for number in range(1, last + 1):
            told.append(_Told(asked, number, Detail.FULL))
            sizes.append(told[-1].size(style))
            if sum(sizes) > style.history_chars:
                _shorten(told, sizes, style)
    return told


def _shorten(told: list[_Told], sizes: list[int], style: PromptStyle) -> None:
    for detail in (Detail.BRIEF, Detail.OUTLINE, Detail.NOTHING):
        for index, turn in enumerate(told[:-1]):
            if sum(sizes) <= style.history_chars // 2:
                return
            if turn.detail < detail:
                told[index] = _Told(turn.transcript, turn.number, detail)
                sizes[index] = told[index].size(style)


def _opening(transcript: Transcript) -> str:
    start = transcript.start
    return f"Query: {start.query}\n\n{_about(start.context)}"


def _next_query(transcript: Transcript) -> str:
    start = transcript.start
    changed = f" {_about(start.context)}" if start.context is not None else ""
    return f"That query is done. The REPL and its variables are as you left them.{changed}\n\nNext query: {start.query}"


def _about(context: ContextInfo | None) -> str:
    if context is None:
        return "There is no `context`: the query is all there is."
    size = f"{context.length:,} {context.unit}"
    if context.unit != "bytes":
        size += f", {context.size_bytes:,} bytes"
    lines = [f"`context` is a {context.type_name} of {size}."]
    if context.tail:
        lines += ["It begins:", f"<head>\n{context.head}\n</head>", "It ends:", f"<tail>\n{context.tail}\n</tail>"]
    else:
        lines += ["All of it:", f"<context>\n{context.head}\n</context>"]
    return "\n".join(lines)


def _asking(transcript: Transcript, number: int) -> str:
    start = transcript.start
    if transcript.turns[number - 1].last_resort:
        over = "The time for this task is over" if transcript.time_short else "You are out of iterations"
        return (
            f"{over}, and no more code runs. From what you have seen so far, give your best answer "
            f"to the query now, as plain text and nothing else.{_reminder(start.query)}"
        )
    left = start.max_iterations - number
    asking = f"Iteration {number} of {start.max_iterations}."
    if left == 0:
        return f"{asking} This is the last one: call FINAL(...) with your best answer.{_reminder(start.query)}"
    if left == 1 and number > 1:
        return f"{asking} One more comes after this: bring it to an end.{_reminder(start.query)}"
    return asking


def _reminder(query: str) -> str:
    return f" The query is: {cut(query, _REMINDED_QUERY_CHARS)}"
