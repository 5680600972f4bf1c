"""What a sub-call gives back when it fails, and the checks on what it is given."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from worker_calls import Answered, Outcome, Question, Refused, Reply, size_of

MAX_PROMPTS = 10_000
MAX_BYTES = 48 << 20  # all prompts and contexts of one call
CANCELLED = "cancelled"  # why a question has no answer that was given up for another's failure


class SubcallError(str):
    """The place of an answer that failed: text that starts with "Error: ", and says why in `reason`.

    It is a `str`, so that code which only joins and prints goes on working. A model's answer is a plain `str`, whatever
    it says: tell them apart with `failed(answer)`, or `isinstance(answer, SubcallError)`.
    """

    __slots__ = ("reason",)

    failed = True
    reason: str  # model, refused, too_long, budget, deadline, sandbox, invalid or cancelled

    def __new__(cls, text: str, reason: str) -> SubcallError:
        self = super().__new__(cls, text)
        self.reason = reason
        return self

    def __reduce__(self) -> tuple[type[SubcallError], tuple[str, str]]:
        return SubcallError, (str(self), self.reason)


class SubcallFailed(RuntimeError):
    """Raised in place of a `SubcallError` with `strict=True`, and when nobody waits for answers any more."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[SubcallFailed], tuple[str, str]]:
        return SubcallFailed, (str(self), self.reason)


# Code pickles these by name, and __main__ is where it finds them.
SubcallError.__module__ = SubcallFailed.__module__ = "__main__"


def failed(answer: object) -> bool:
    """Whether this is the place of an answer that failed (a SubcallError), and not a model's text."""
    return isinstance(answer, SubcallError)


def _reject(kind: type[Exception], where: str, rule: str, remedy: str) -> NoReturn:
    raise kind(f"{where} {rule}. {remedy}")


def check_process(function: str, process: int) -> None:
    """Raises RuntimeError in a child process, which has no connection."""
    if os.getpid() != process:
        raise RuntimeError(
            f"{function} works only in the process that runs the cell, and this is a child of it. Use threads (for "
            "example concurrent.futures.ThreadPoolExecutor) or llm_batch, or ask before or after the child's work"
        )


def question(function: str, prompt: object, context: object, place: str = "") -> Question:
    """Checks one prompt and its context.

    Raises:
        TypeError: the prompt is no str, or the context is nothing that can be sent.
        ValueError: they are too long together.
    """
    if not isinstance(prompt, str):
        rule, remedy = f"must be a str, not {type(prompt).__name__}", "Convert it: str(...) or json.dumps(...)"
        _reject(TypeError, f"{function}: prompt{place}", rule, remedy)
    kind, data = ("", b"") if context is None else _attachment(f"{function}: context{place}", context)
    checked = Question(str(prompt).encode("utf-8", "replace"), kind, data)
    check_size(function, len(checked.prompt) + len(checked.data))
    return checked


def _attachment(where: str, context: object) -> tuple[str, bytes]:
    match context:
        case str():
            return "text", str(context).encode("utf-8", "replace")
        case bytes() | bytearray() | memoryview():
            return "bytes", bytes(context)
        case _:
            pass
    try:
        text = json.dumps(context, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        rule = f"must be a str, bytes or what JSON can hold, not {type(context).__name__} ({error})"
        remedy = "Convert it first, for example with str(...), list(...) or frame.to_csv()"
        if isinstance(error, ValueError) and "float" in str(error):
            remedy = "JSON has no NaN and no infinity: put None in their places, or hand over str(...)"
        _reject(TypeError, where, rule, remedy)
    if odd := _odd_key_type(context):
        # JSON would make text of such keys, and one of two keys 1 and "1" would be lost.
        remedy = "Convert them: {str(key): value for key, value in data.items()}"
        _reject(TypeError, where, f"must have str keys in its dicts, not {odd}", remedy)
    return "json", text.encode("utf-8", "replace")


def _odd_key_type(value: object) -> str:
    """The type of a key that is no str, in any of the dicts of what JSON can hold; empty when there is none."""
    stack: list[Any] = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, dict):
            for key in inner:
                if not isinstance(key, str):
                    return type(key).__name__
            inner = inner.values()
        elif not isinstance(inner, list | tuple):
            continue
        stack.extend(each for each in inner if isinstance(each, dict | list | tuple))
    return ""


def questions(function: str, prompts: object, contexts: object) -> list[Question]:
    """Checks a list of prompts and the list of their contexts.

    Raises:
        TypeError: one of them is not a list, or holds what cannot be sent.
        ValueError: the lists differ in length, or there is too much in them.
    """
    listed = _sequence(f"{function}: prompts", prompts, "must be a list of str")
    if len(listed) > MAX_PROMPTS:
        rule = f"has {len(listed):,} items; at most {MAX_PROMPTS:,} are allowed"
        _reject(ValueError, f"{function}: prompts", rule, "Call it once for each part of the list")
    given: Sequence[Any] = [None] * len(listed)
    if contexts is not None:
        given = _sequence(f"{function}: contexts", contexts, "must be a list, one context for each prompt")
        if len(given) != len(listed):
            rule = f"has {len(given):,} items, but there are {len(listed):,} prompts"
            _reject(ValueError, f"{function}: contexts", rule, "Give one for each prompt; None where there is none")
    checked = [
        question(function, prompt, context, f"s[{place}]")
        for place, (prompt, context) in enumerate(zip(listed, given, strict=True))
    ]
    check_size(function, size_of(checked))
    return checked


def _sequence(where: str, value: object, rule: str) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return value
    remedy = "For one prompt use [prompt], or llm_query(prompt)" if isinstance(value, str) else "Convert it: list(...)"
    _reject(TypeError, where, f"{rule}, not {type(value).__name__}", remedy)


def check_size(function: str, size: int) -> None:
    """Raises ValueError when prompts and contexts of this size cannot go into one message."""
    if size > MAX_BYTES:
        rule = f"prompts and contexts have {size:,} bytes together; at most {MAX_BYTES:,} are allowed in one call"
        _reject(ValueError, f"{function}:", rule, "Send less, or in several calls")


def concurrency(function: str, max_concurrent: object) -> int:
    """Checks `max_concurrent`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below 1.
    """
    where, remedy = f"{function}: max_concurrent", "Leave it out for the default of 10"
    if isinstance(max_concurrent, bool):
        _reject(TypeError, where, "must be an int, not bool", remedy)
    try:
        number = operator.index(max_concurrent)  # type: ignore[arg-type]
    except TypeError:
        _reject(TypeError, where, f"must be an int, not {type(max_concurrent).__name__}", remedy)
    if number < 1:
        _reject(ValueError, where, f"must be at least 1, not {number}", remedy)
    return min(number, (1 << 31) - 1)


def choice(function: str, recursive: object) -> bool | None:
    """Checks `recursive`. Raises TypeError when it is neither a bool nor None."""
    if recursive is None or isinstance(recursive, bool):
        return recursive
    rule = f"must be True, False or None, not {type(recursive).__name__}"
    _reject(TypeError, f"{function}: recursive", rule, "Leave it out to leave it to the run")


def slots(function: str, reply: Reply, strict: bool) -> list[str]:
    """The answers of a reply, with a `SubcallError` in the place of each that failed.

    Raises:
        SubcallFailed: one failed, and `strict` is true; or the cell that asked has ended.
        ValueError: the host found the call unacceptable.
    """
    match reply:
        case Answered(outcomes=outcomes):
            if strict:
                _check_all(function, outcomes)
            return [SubcallError(f"Error: {text}", reason) if reason else text for reason, text in outcomes]
        case Refused(kind="invalid", message=message):
            raise ValueError(f"{function}: {message}")
        case Refused(kind=kind, message=message):
            raise SubcallFailed(f"{function}: {message}", "sandbox" if kind == "failed" else kind)


def _check_all(function: str, outcomes: list[Outcome]) -> None:
    """Raises SubcallFailed for the first that failed by itself, else for one that was cancelled with it."""
    failures = [(reason == CANCELLED, place) for place, (reason, _) in enumerate(outcomes) if reason]
    if failures:
        _, place = min(failures)
        reason, text = outcomes[place]
        which = f"prompts[{place}] (of {len(outcomes)}) " if len(outcomes) > 1 else ""
        raise SubcallFailed(f"{function}: {which}failed ({reason}): {text}", reason)
