"""What the command writes, and where: results on stdout, everything else on stderr, nothing that a model could abuse.

Text from a model or a sandbox passes `printable` on its way to a terminal. Into a file or a pipe it goes as it is.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from orchestrator.folds.printable import printable


def is_terminal(*, stderr: bool = True) -> bool:
    stream = sys.stderr if stderr else sys.stdout
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def colors(no_color: bool = False, *, stderr: bool = True) -> bool:
    """Whether to color a stream. See no-color.org: the variable counts when it is not empty."""
    return not no_color and not os.environ.get("NO_COLOR") and is_terminal(stderr=stderr)


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    _to_stderr(printable(text))


def warn(text: str, *, label: str = "Note") -> None:
    """A line that should not be overlooked, on stderr."""
    style = {"Error": "red", "Unexpected error": "red"}.get(label, "yellow")
    start = f"{label}: " if label else ""
    if start and colors():
        start = click.style(f"{label}:", fg=style, bold=True) + " "
    _to_stderr(start + printable(text))


def _to_stderr(text: str) -> None:
    # Not click.echo: it writes past whatever stands in for sys.stderr, and the live tree, which does, would be torn.
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        pass  # nobody reads it any more, and what is done is done all the same


def give(text: str) -> None:
    """A result, on stdout. Not by click.echo, which would take sequences out of what goes into a file."""
    if is_terminal(stderr=False):
        text = printable(text)
    # Lone surrogates cannot be encoded, and must not cost the user the rest of an answer that was paid for.
    sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8") + "\n")
    sys.stdout.flush()


def give_json(value: Any) -> None:
    """One JSON object on one line of stdout, in ASCII: no control reaches a terminal unescaped."""
    give(json.dumps(value, ensure_ascii=True))
