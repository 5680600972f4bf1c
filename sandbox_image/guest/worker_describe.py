"""Values as text, for people and models: bounded in size and time, and surviving what an object's own code does."""

from __future__ import annotations

import itertools
import json
import numbers
import sys
from types import ModuleType
from typing import Any, NamedTuple

REPR_CAP = 200_000  # characters
MAX_NODES = 50_000  # of a container whose repr is made as it is
MAX_ITEMS = 200  # of each container, when it is abridged
MAX_DEPTH = 6
MAX_VARIABLES = 200
FINAL_CAP = 8 << 20  # bytes of UTF-8

_class_name = type.__dict__["__name__"].__get__


def type_name(value: object) -> str:
    """The name of a value's class; runs no code of a metaclass."""
    name = str(_class_name(type(value)))[:100]
    return name if name.isascii() else name.encode("utf-8", "replace").decode()


def shown(value: object) -> str:
    """What a REPL shows for a value: its repr, abridged where it would be huge.

    Never raises an Exception; a KeyboardInterrupt or the like from the object's own code passes.
    """
    try:
        text = repr(value) if _is_small(value) else _abridged(value, 0)
        return cut(text, REPR_CAP)
    except Exception as error:
        return f"<{type_name(value)} object; its repr raised {type_name(error)}: {cut(safe_str(error), 500)}>"


def safe_str(value: object) -> str:
    """`str(value)`, or a note in its place when that raises."""
    try:
        return str(value)
    except Exception as error:
        return f"<str() of {type_name(value)} raised {type_name(error)}>"


def cut(text: str, cap: int) -> str:
    """The text, or its head and tail with a note of how much was left out between them."""
    if len(text) <= cap:
        return text
    head, tail = text[: cap - cap // 3], text[-(cap // 3) :]
    return f"{head}\n[... {len(text) - len(head) - len(tail):,} characters left out ...]\n{tail}"


def _is_small(value: object) -> bool:
    kind = type(value)
    if kind is int or kind is float or kind is bool:
        return True
    stack, nodes, characters = [iter((value,))], 0, 0
    while stack:
        for item in stack[-1]:
            nodes += 1
            kind = type(item)
            if kind in (str, bytes, bytearray):
                characters += len(item)  # type: ignore[arg-type]
            if nodes > MAX_NODES or characters > REPR_CAP:
                return False
            if kind in (list, tuple, set, frozenset):
                stack.append(iter(item))  # type: ignore[call-overload]
                break
            if kind is dict:
                stack.append(itertools.chain.from_iterable(item.items()))  # type: ignore[attr-defined]
                break
        else:
            stack.pop()
    return True


def _abridged(value: Any, depth: int) -> str:
    kind = type(value)
    if kind in (str, bytes, bytearray) and len(value) > REPR_CAP // 20:
        half = REPR_CAP // 40
        return f"{value[:half]!r} [... {len(value) - 2 * half:,} left out ...] {value[-half:]!r}"
    if kind not in (list, tuple, set, frozenset, dict):
        return repr(value)
    if depth >= MAX_DEPTH:
        return f"<{kind.__name__} of {len(value):,}>"
    if kind is dict:
        pairs = itertools.islice(value.items(), MAX_ITEMS)
        items = [f"{_abridged(key, depth + 1)}: {_abridged(item, depth + 1)}" for key, item in pairs]
    else:
        items = [_abridged(item, depth + 1) for item in itertools.islice(value, MAX_ITEMS)]
    if len(value) > MAX_ITEMS:
        items.append(f"[... {len(value) - MAX_ITEMS:,} more ...]")
    brackets: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), frozenset: ("frozenset({", "})")}
    opening, closing = brackets.get(kind, ("{", "}"))
    return cut(f"{opening}{', '.join(items)}{closing}", REPR_CAP)


def size(value: Any) -> str:
    """How large a value is, as far as that can be told without running its own code; else empty."""
    kind = type(value)
    # Not `in`, which would ask a metaclass whether two classes are equal.
    if kind is str:
        return _count(len(value), "character")
    if kind is list or kind is tuple or kind is set or kind is frozenset or kind is dict:
        return _count(len(value), "item")
    if kind is bytes or kind is bytearray:
        return _count(len(value), "byte")
    for library, names in (("numpy", ("ndarray",)), ("pandas", ("DataFrame", "Series"))):
        module = sys.modules.get(library)
        if type(module) is ModuleType and any(kind is module.__dict__.get(name) for name in names):
            return "shape " + " x ".join(str(int(length)) for length in value.shape)[:50]
    return ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def variables(namespace: dict[str, Any], hidden: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The user's variables as (name, type, size), the newest first; runs no code of theirs.

    `hidden` are names that are not shown as long as they hold these very objects.
    """
    found: list[tuple[str, str, str]] = []
    nothing = object()
    for name, value in reversed(list(namespace.items())):  # at once: threads may change it
        if type(name) is not str or hidden.get(name, nothing) is value:
            continue
        if name.startswith("_") or not name.isidentifier() or len(name) > 100:
            continue
        if issubclass(type(value), ModuleType):  # isinstance would ask the value's own __class__
            continue
        try:
            found.append((name, type_name(value), size(value)))
        except Exception:  # a library that was tampered with
            found.append((name, type_name(value), ""))
        if len(found) == MAX_VARIABLES:
            break
    return found


class FinalText(NamedTuple):
    """A final answer as text; `length` is its true length in characters when it was cut, else 0."""

    text: bytes
    type_name: str
    length: int


def final_text(value: Any) -> FinalText:
    """`str` of a scalar, JSON of a list or dict where it has one, else the repr. Runs the value's own code."""
    if value is None or isinstance(value, str | numbers.Number):
        text = str(value)
    elif isinstance(value, list | tuple | dict):
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            text = repr(value)
    else:
        text = repr(value)
    data = text.encode("utf-8", "replace")
    if len(data) <= FINAL_CAP:
        return FinalText(data, type_name(value), 0)
    whole = data[:FINAL_CAP].decode("utf-8", "ignore").encode()  # no half character at the end
    return FinalText(whole, type_name(value), len(text))
