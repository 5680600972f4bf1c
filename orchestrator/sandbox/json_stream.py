"""Writes a Python value as JSON, item by item, and refuses what would come back as something else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from orchestrator.errors import InvalidInput

_MAX_NESTING = 200
_REMEDY = (
    "A context is a str, bytes, a file, or what JSON can hold: list, dict with str keys, str, int, float, bool, None."
)
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(", ", ": ")).encode


def type_name_of(value: object) -> str:
    """As the code in a sandbox will see it: "list[str]", "list[dict]", "dict", ..."""
    match value:
        case list() | tuple():
            kinds = {type(item) for item in value}
            if kinds == {str}:
                return "list[str]"
            return "list[dict]" if kinds == {dict} else "list"
        case _:
            return type(value).__name__


def pieces_of(value: object) -> Iterator[bytes]:
    """The document in pieces of about one top-level item each. Raises `InvalidInput` that names the place."""
    match value:
        case list() | tuple():
            yield b"["
            for index, item in enumerate(value):
                yield (b", " if index else b"") + _document(item, f"context[{index}]")
            yield b"]"
        case dict():
            yield b"{"
            for index, (key, item) in enumerate(value.items()):
                _check_key(key, "context")
                name = _utf8(_encode(key), "context")
                yield (b", " if index else b"") + name + b": " + _document(item, f"context[{key!r:.60}]")
            yield b"}"
        case _:
            yield _document(value, "context")


def _document(value: object, place: str) -> bytes:
    _check(value, place, 1)
    try:
        return _utf8(_encode(value), place)
    except ValueError as error:
        raise InvalidInput(place, f"cannot be written as JSON ({error}).", _REMEDY) from None


def _utf8(text: str, place: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInput(
            place, "holds half of a surrogate pair, which UTF-8 cannot.", "Encode it with errors='replace'."
        ) from None


def _check(value: object, place: str, depth: int) -> None:
    match value:
        case None | bool() | int() | str():
            return
        case float():
            if not math.isfinite(value):
                raise InvalidInput(place, f"is {value}, which JSON does not have.", "Replace it by None or a string.")
        case list() | tuple() | dict():
            if depth > _MAX_NESTING:
                raise InvalidInput(
                    place[:200], f"is nested deeper than {_MAX_NESTING} levels, or holds itself.", _REMEDY
                )
            _check_inside(value, place, depth + 1)
        case _:
            raise InvalidInput(place, f"is of type {type(value).__name__}, which JSON does not have.", _REMEDY)


def _check_inside(value: list[object] | tuple[object, ...] | dict[object, object], place: str, depth: int) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_key(key, place)
            # The common case costs no call and no name.
            if type(item) is not str and type(item) is not int:
                _check(item, f"{place}[{key!r:.60}]", depth)
        return
    for index, item in enumerate(value):
        if type(item) is not str and type(item) is not int:
            _check(item, f"{place}[{index}]", depth)


def _check_key(key: object, place: str) -> None:
    if not isinstance(key, str):
        raise InvalidInput(
            place,
            f"has a key of type {type(key).__name__} ({key!r:.60}); JSON keys are str.",
            "Convert keys with str().",
        )
