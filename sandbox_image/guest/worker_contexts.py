"""Contexts: files that become variables when code first mentions them."""

from __future__ import annotations

import json
import mmap
import re
from typing import Any, NamedTuple

EAGER_BYTES = 1 << 20  # smaller ones are there from the first cell on, mentioned or not


class ContextUnavailable(RuntimeError):
    """A context cannot be read; the cell that mentions it was not run."""


class ContextFile(NamedTuple):
    """Where a context is, and what it becomes: `kind` is "text", "json" or "bytes"."""

    variable: str
    kind: str
    path: str
    size: int  # bytes, as announced

    @property
    def type_name(self) -> str:
        return {"text": "str", "bytes": "bytes"}.get(self.kind, "JSON")


class Contexts:
    """The contexts that are not loaded yet."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[ContextFile, re.Pattern[str]]] = {}

    def add(self, context: ContextFile) -> None:
        """Announces one more; it takes the place of another of the same name."""
        # Also within strings: code that is put together from text, and FINAL_VAR("context"), need it too.
        mention = re.compile(rf"(?<!\w){re.escape(context.variable)}(?!\w)")
        self._pending[context.variable] = context, mention

    def load_for(self, source: str, namespace: dict[str, Any]) -> None:
        """Loads what this source mentions, and what is small.

        Raises:
            ContextUnavailable: a file is missing, or is not what it was announced as.
        """
        for variable, (context, mention) in list(self._pending.items()):
            if context.size < EAGER_BYTES or mention.search(source):
                namespace[variable] = _load(context)
                del self._pending[variable]

    def described(self) -> list[tuple[str, str, str]]:
        """The contexts not loaded yet as (name, type, size)."""
        return [(c.variable, c.type_name, f"{c.size:,} bytes, not loaded yet") for c, _ in self._pending.values()]


def _load(context: ContextFile) -> Any:
    try:
        with open(context.path, "rb") as file:
            if context.kind == "bytes":
                return file.read()
            text = _text(file.fileno())
        return json.loads(text) if context.kind == "json" else text
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except ValueError as error:
        reason = f"it is not JSON: {error}"
    except RecursionError:
        reason = "its JSON is nested too deeply"
    except MemoryError:
        reason = f"its {context.size:,} bytes do not fit into this sandbox's memory"
    raise ContextUnavailable(f"{context.variable} cannot be loaded: {reason}. The cell was not run") from None


def _text(descriptor: int) -> str:
    """Decodes from the page cache: the text is in this process's memory once, not twice."""
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:
        return ""  # an empty file cannot be mapped
    with mapped:
        return str(mapped, "utf-8", "replace")
