"""An exception as the model reads it: the cell's own lines, without the guest's frames, and never too long."""

from __future__ import annotations

import linecache
import os
import traceback
from collections import deque
from typing import NamedTuple

from worker_describe import cut, safe_str, type_name

TRACEBACK_CAP = 64_000  # characters
MESSAGE_CAP = 8_000
MAX_CHAIN = 50
MAX_FRAMES = 2_000
MAX_SOURCES = 1_000

_GUEST = os.path.dirname(os.path.abspath(__file__)) + os.sep


class CodeError(NamedTuple):
    type_name: str
    message: str
    traceback: str


_sources: deque[str] = deque()


def remember_source(filename: str, source: str) -> None:
    """Lets tracebacks and `inspect` find the lines of a cell."""
    if len(_sources) == MAX_SOURCES:
        linecache.cache.pop(_sources.popleft(), None)
    _sources.append(filename)
    # Without a modification time, linecache keeps it when there is no such file.
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename


def describe(error: BaseException) -> CodeError:
    """What Python prints for an exception, cut. Runs the exception's own code, and survives what it raises."""
    name = type_name(error)
    message = cut(safe_str(error), MESSAGE_CAP)
    try:
        text = _formatted(error)
    except Exception as second:
        text = f"{name}: {message}\n(its traceback could not be made: {type_name(second)})\n"
    if isinstance(error, SystemExit):
        text += "sys.exit() and exit() end the cell only; what ran before is kept.\n"
    return CodeError(name, message, cut(text, TRACEBACK_CAP))


def _formatted(error: BaseException) -> str:
    if _chain_length(error) > MAX_CHAIN:
        stack = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), limit=-MAX_FRAMES)
        _cut_own_frames(stack)
        last = "".join(["Traceback (most recent call last):\n", *stack.format()])
        message = cut(safe_str(error), TRACEBACK_CAP)
        return f"(more than {MAX_CHAIN} chained exceptions; the last one:)\n{last}{type_name(error)}: {message}\n"
    report = traceback.TracebackException(type(error), error, error.__traceback__, limit=-MAX_FRAMES, compact=True)
    reports = [report]
    while reports:
        current = reports.pop()
        _cut_own_frames(current.stack)
        linked = (current.__cause__, current.__context__, *(current.exceptions or ()))
        reports += [one for one in linked if one is not None]
    # Piece by piece: a message of megabytes must not be there three times, where memory may be short.
    return "".join(cut(piece, TRACEBACK_CAP) for piece in report.format())


def _cut_own_frames(stack: traceback.StackSummary) -> None:
    """Leaves what the cell did: not how the guest, or the event loop of a top-level await, called it."""
    in_cells = [place for place, frame in enumerate(stack) if frame.filename.startswith("<cell ")]
    start = in_cells[0] if in_cells else 0
    stack[:] = [frame for frame in stack[start:] if not frame.filename.startswith(_GUEST)]


def _chain_length(error: BaseException) -> int:
    length, stack, seen = 0, [error], {id(error)}
    while stack and length <= MAX_CHAIN:
        current = stack.pop()
        length += 1
        members = current.exceptions if isinstance(current, BaseExceptionGroup) else ()
        for linked in (current.__cause__, current.__context__, *members):
            if linked is not None and id(linked) not in seen:
                seen.add(id(linked))
                stack.append(linked)
    return length
