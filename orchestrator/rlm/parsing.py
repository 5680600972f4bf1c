"""What a model's reply asks for: code to run, or an answer. Pure, never raises, linear in the length of the reply."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from orchestrator.rlm.fences import PYTHON_TAGS, Block, split_fences
from orchestrator.rlm.final_text import FinalText, TextualFinal, find_final, unquoted

_THINKING: Final = ("<think>", "</think>")
# At an end of its line: code that takes such replies apart has it within a string.
_BARE_CLOSING: Final = re.compile(r"^[ \t]*</think>|</think>[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """`blocks` run, in order; `ignored_blocks` do not, and the model is told.

    `textual_final` is set only in a reply without any block: models write code and a guessed answer in one reply.
    """

    blocks: tuple[Block, ...]
    ignored_blocks: tuple[Block, ...]
    textual_final: TextualFinal | None


def parse_reply(text: str) -> ParsedReply:
    """Blocks tagged `repl` run; `python`, `py` and untagged ones do when the reply has no `repl` block."""
    said = _without_thinking(text)
    blocks = split_fences(said).blocks
    if not blocks:
        return ParsedReply((), (), find_final(said))
    tags = {"repl"} if any(block.tag == "repl" for block in blocks) else PYTHON_TAGS
    runs = [block.tag in tags and bool(block.code.strip()) for block in blocks]
    return ParsedReply(
        tuple(block for block, run in zip(blocks, runs, strict=True) if run),
        tuple(block for block, run in zip(blocks, runs, strict=True) if not run),
        None,
    )


def answer_in(text: str) -> str:
    """The answer in a reply to the last plain question: what a `FINAL(...)` holds, else all of it. Code is not run."""
    said = _without_thinking(text)
    fenced = split_fences(said)
    final = find_final(fenced.outside)
    if isinstance(final, FinalText):
        return final.text
    # Asked for plain text, some still call FINAL in a block of its own; a quoted string needs no REPL.
    if len(fenced.blocks) == 1 and not fenced.outside.strip():
        code = fenced.blocks[0].code.strip()
        literal = code.removeprefix("FINAL(").removesuffix(")")
        if code == f"FINAL({literal})" and unquoted(literal) != literal.strip():
            return unquoted(literal)
    return said.strip()


def _without_thinking(text: str) -> str:
    """Some models send their reasoning in the reply; the code they consider there is not meant to run.

    Where a chat template has written the opening tag already, the reply has the closing one only.
    """
    opening, closing = _THINKING
    if text.lstrip().startswith(opening):
        return text.partition(closing)[2]
    bare = _BARE_CLOSING.search(text)
    return text[bare.end() :] if bare and opening not in text[: bare.start()] else text
