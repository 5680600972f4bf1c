"""`FINAL(...)` and `FINAL_VAR(...)` written as text rather than called in the REPL. Pure, and linear in the length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Each candidate may be read to the end of the text; a reply with more such lines than this does not mean an answer.
_MOST_CANDIDATES: Final = 16

_CALL = re.compile(r"^[ \t]*(?P<name>FINAL_VAR|FINAL)\(", re.MULTILINE)
_QUOTES: Final = ('"""', "'''", '"', "'")
_LITERAL_TOKEN: Final = {quote: re.compile(rf"\\.|{quote}", re.DOTALL) for quote in _QUOTES}
_TOKEN = re.compile(r"\\.|[()'\"]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:\n|(?P<char>[ntr\\'\"]))")
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}
_IDENTIFIER = re.compile(r"[^\W\d]\w*\Z")


@dataclass(frozen=True, slots=True)
class FinalText:
    """`FINAL(text)`: the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class FinalVariable:
    """`FINAL_VAR(...)`: the code that asks the REPL for the answer."""

    code: str


TextualFinal = FinalText | FinalVariable


def find_final(text: str) -> TextualFinal | None:
    """The first call at the start of a line that has balanced parentheses and quotes, and nothing after it on its line.

    What is one quoted string is unquoted; all else is the answer as it stands. An apostrophe is no quote.
    """
    for count, call in enumerate(_CALL.finditer(text)):
        if count == _MOST_CANDIDATES:
            return None
        argument = _argument(text, call.end())
        if argument is None:
            continue
        if call["name"] == "FINAL":
            return FinalText(unquoted(argument))
        name = unquoted(argument)
        return FinalVariable(f"FINAL_VAR({name!r})" if _IDENTIFIER.match(name) else f"FINAL_VAR({argument})")
    return None


def unquoted(argument: str) -> str:
    """The value of one string literal, or the stripped argument when it is anything else."""
    bare = argument.strip()
    end = _literal_end(bare, 0)
    if end != len(bare) or not bare:
        return bare
    width = 3 if bare[:3] in _QUOTES else 1
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found["char"], found["char"] or ""), bare[width:-width])


def _argument(text: str, start: int) -> str | None:
    for end in (_after_literal(text, start), _balanced(text, start, True), _balanced(text, start, False)):
        if end is not None and _rest_of_line(text, end + 1) in ("", ".", ";"):
            return text[start:end]
    return None


def _rest_of_line(text: str, start: int) -> str:
    end = text.find("\n", start)
    return text[start : end if end >= 0 else len(text)].strip()


def _after_literal(text: str, start: int) -> int | None:
    """Where the parenthesis closes when the argument is one string literal."""
    literal = _literal_end(text, _skip_space(text, start))
    if literal is None:
        return None
    end = _skip_space(text, literal)
    return end if text[end : end + 1] == ")" else None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _literal_end(text: str, at: int) -> int | None:
    """The index after the string literal at `at`, single-quoted ones over several lines too; None without one."""
    quote = next((quote for quote in _QUOTES if text.startswith(quote, at)), None)
    if quote is None:
        return None
    for found in _LITERAL_TOKEN[quote].finditer(text, at + len(quote)):
        if found[0] == quote:
            return found.end()
    return None


def _balanced(text: str, start: int, heed_quotes: bool) -> int | None:
    """The index of the parenthesis that closes the one before `start`."""
    depth = 1
    quote = ""
    for found in _TOKEN.finditer(text, start):
        token = found[0]
        if quote:
            if token == quote:
                quote = ""
        elif token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
            if depth == 0:
                return found.start()
        elif heed_quotes and (token == '"' or (token == "'" and not text[found.start() - 1].isalnum())):
            quote = token
        elif token[0] == "\\" and token[1:] in ("(", ")"):
            # Outside of a string a backslash escapes nothing.
            depth += 1 if token[1] == "(" else -1
            if depth == 0:
                return found.end() - 1
    return None
