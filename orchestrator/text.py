"""Text as models and their code make it, and as UTF-8, and so all that is stored or sent, can hold it."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec


def repaired(text: str) -> str:
    """Halves of a character that stand side by side become that character, a half alone U+FFFD.

    Such halves (surrogates) come out of JSON escapes, which name UTF-16 units, and out of Python's own `chr`.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def half_at_end(text: str) -> bool:
    """Whether the last character is the first half of one: the other half may follow."""
    return bool(text) and "\ud800" <= text[-1] <= "\udbff"


def encoded_json(encode: Callable[[object], bytes], value: object) -> bytes:
    """What `encode`, of msgspec, makes of it; text in it that UTF-8 cannot hold is repaired."""
    try:
        return encode(value)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value, str_keys=True), ensure_ascii=False)
        return repaired(text).encode()
