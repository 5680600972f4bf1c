"""Fenced code blocks of a reply, line by line as CommonMark reads them (https://spec.commonmark.org/0.31.2/#fenced-code-blocks).

Pure, and linear in the length of the text. Where models write what CommonMark would not call a block, or would end too
early, this is more tolerant, and only there where the strict reading could not be Python anyway:

- a fence may be indented by any amount, as inside a list item, or follow a list marker;
- a closing fence inside a triple-quoted string of a Python block belongs to the string, when the string ends later;
- a closing fence may follow the last line of Python code without a line break (``x = 1``` ``);
- code that is indented as a whole is dedented.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Final

PYTHON_TAGS: Final = frozenset({"repl", "python", "py", ""})

_OPENING = re.compile(
    r"(?P<prefix>[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})(?P<info>.*)", re.DOTALL
)
_PYTHON_TOKEN = re.compile(r"""\\.|'''|\"\"\"|['"#]|`{3,}|~{3,}""", re.DOTALL)
_TRIPLE_QUOTES = frozenset({"'''", '"""'})


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `tag` is the first word of its info string in lower case; `line`, from 1, its opening fence's."""

    code: str
    tag: str
    line: int
    closed: bool  # False: the text ended before the block did


@dataclass(frozen=True, slots=True)
class Fenced:
    blocks: tuple[Block, ...]
    outside: str  # what is not in a block


@dataclass(frozen=True, slots=True)
class _Fence:
    char: str
    length: int
    indent: int
    tag: str


def split_fences(text: str) -> Fenced:
    """Never raises: every text has a reading."""
    lines = text.replace("\r\n", "\n").split("\n")
    blocks: list[Block] = []
    outside: list[str] = []
    # One failed look ahead is enough: a second pass over the rest for each block would make the time quadratic.
    look_ahead = True
    at = 0
    while at < len(lines):
        fence = _opening(lines[at])
        if fence is None:
            outside.append(lines[at])
            at += 1
            continue
        block, after, look_ahead = _read_block(lines, at, fence, look_ahead)
        blocks.append(block)
        at = after
    return Fenced(tuple(blocks), "\n".join(outside))


def _opening(line: str) -> _Fence | None:
    found = _OPENING.match(line) if "```" in line or "~~~" in line else None
    if found is None:
        return None
    fence, info = found["fence"], found["info"].strip()
    if fence[0] == "`" and "`" in info:
        return None  # an inline code span
    words = info.split(None, 1)
    tag = words[0].lower() if words else ""
    return _Fence(fence[0], len(fence), len(found["prefix"].expandtabs(4)), tag)


def _closes(line: str, fence: _Fence) -> bool:
    marks = line.strip(" \t")
    if len(marks) < fence.length or marks.strip(fence.char):
        return False
    indent = line[: line.index(fence.char)]
    return len(indent.expandtabs(4)) <= max(3, fence.indent)


def _read_block(lines: list[str], start: int, fence: _Fence, look_ahead: bool) -> tuple[Block, int, bool]:
    """The block that opens at `start`, the line after it, and whether later blocks may still look ahead."""
    is_python = fence.tag in PYTHON_TAGS
    code: list[str] = []
    in_string: str | None = None
    strict_end: tuple[int, int] | None = None  # where CommonMark ends it: lines of code, line after
    for at in range(start + 1, len(lines)):
        line = lines[at]
        if _closes(line, fence):
            if in_string is None or not look_ahead:
                return _block(code, fence, start, closed=True), at + 1, look_ahead
            strict_end = strict_end or (len(code), at + 1)
        elif strict_end is not None and _starts_repl(line):
            break
        body = _without_indent(line, fence.indent)
        if is_python:
            in_string, adjacent = _scan_python(body, in_string, fence)
            if adjacent is not None:
                code.append(body[:adjacent])
                return _block(code, fence, start, closed=True), at + 1, look_ahead
        code.append(body)
    if strict_end is not None:
        return _block(code[: strict_end[0]], fence, start, closed=True), strict_end[1], False
    return _block(code, fence, start, closed=False), len(lines), look_ahead


def _starts_repl(line: str) -> bool:
    fence = _opening(line)
    return fence is not None and fence.tag == "repl"


def _block(code: list[str], fence: _Fence, start: int, *, closed: bool) -> Block:
    text = "\n".join(code)
    if fence.tag in PYTHON_TAGS and _first_code_line(code)[:1] in (" ", "\t"):
        text = textwrap.dedent(text)
    return Block(text, fence.tag, start + 1, closed)


def _first_code_line(code: list[str]) -> str:
    return next((line for line in code if line.strip()), "")


def _without_indent(line: str, indent: int) -> str:
    """The line without up to `indent` columns of leading white space."""
    column = 0
    for index, char in enumerate(line):
        if column >= indent or char not in " \t":
            return line[index:]
        column += 4 - column % 4 if char == "\t" else 1
    return ""


def _scan_python(line: str, in_string: str | None, fence: _Fence) -> tuple[str | None, int | None]:
    """The triple quote that is open after this line, and where a closing fence follows code on it, if it does."""
    quote = in_string
    code_end = len(line.rstrip())
    for found in _PYTHON_TOKEN.finditer(line):
        token = found[0]
        if token[0] == "\\":
            continue
        if quote is not None:
            if token == quote:
                quote = None
            elif token in _TRIPLE_QUOTES and token[0] == quote:
                quote = None  # an empty string's rest or a quote that closes at its first character
            continue
        if token == "#":
            return None, None
        if token[0] in "`~":
            if token[0] == fence.char and len(token) >= fence.length and found.end() == code_end:
                return None, found.start()
            continue
        quote = token
    # Only triple-quoted strings go on over the end of a line.
    return (quote if quote in _TRIPLE_QUOTES else None), None
