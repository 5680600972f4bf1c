"""What a JSON document holds at its top level, found without building it: it may be large, and hostile."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from orchestrator.errors import InvalidInput

# A string whole, or one structural character. A string's inside is consumed without backtracking.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_SPACE = b" \t\r\n"
# Counting is Python, token by token: a document with more of them is described by its bytes.
_MAX_TOKENS = 200_000
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")


@dataclass(frozen=True, slots=True)
class Shape:
    type_name: str
    length: int
    unit: str


def shape_of(document: bytes) -> Shape:
    """Raises `InvalidInput` when it is not a JSON document in UTF-8."""
    try:
        document.decode("utf-8")
        # Raw checks the whole syntax, and builds nothing but a view of the bytes.
        msgspec.json.decode(document, type=msgspec.Raw)
    except UnicodeDecodeError as error:
        raise InvalidInput("context", f"is not UTF-8 at byte {error.start:,}.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput("context", f"is not a JSON document ({error}).") from None
    text = document.strip(_SPACE)
    match text[:1]:
        case b"[":
            return _container(text, "list", "items")
        case b"{":
            return _container(text, "dict", "keys")
        case b'"':
            return Shape("str", len(msgspec.json.decode(text, type=str)), "characters")
        case _:
            return Shape(type(msgspec.json.decode(text)).__name__, len(text), "characters")


def _container(text: bytes, type_name: str, unit: str) -> Shape:
    if not text[1:-1].strip(_SPACE):
        return Shape(type_name, 0, unit)
    depth, commas, starts = 0, 0, {_first(text, 1)}
    for count, token in enumerate(_TOKEN.finditer(text)):
        if count >= _MAX_TOKENS:
            return Shape(type_name, len(text), "bytes")
        character = text[token.start()]
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == ord(",") and depth == 1:
            commas += 1
            starts.add(_first(text, token.end()))
    if type_name == "list":
        type_name = {frozenset(b'"'): "list[str]", frozenset(b"{"): "list[dict]"}.get(frozenset(starts), "list")
    return Shape(type_name, commas + 1, unit)


def _first(text: bytes, position: int) -> int:
    """The first character at or after a position that is no space."""
    while text[position] in _SPACE:
        position += 1
    return text[position]
