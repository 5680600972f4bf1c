"""Contexts: files that become variables when code first mentions them, and can be had again."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable
from typing import Any, NamedTuple

EAGER_BYTES = 1 << 20  # smaller ones are there from the first cell on, mentioned or not


class ContextUnavailable(RuntimeError):
    """A context cannot be read."""


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
    """All contexts, and which of them are not loaded yet."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[ContextFile, re.Pattern[str]]] = {}
        self._files: dict[str, ContextFile] = {}
        # By id: a reference would keep a gigabyte alive that the code has let go. One that comes again hides a note.
        self._loaded: dict[str, int] = {}

    def add(self, context: ContextFile) -> None:
        """Announces one more; it takes the place of another of the same name."""
        # Also within strings: code that is put together from text, and FINAL_VAR("context"), need it too.
        mention = re.compile(rf"(?<!\w){re.escape(context.variable)}(?!\w)")
        self._pending[context.variable] = context, mention
        self._files[context.variable] = context
        self._loaded.pop(context.variable, None)

    def load_for(self, source: str, namespace: dict[str, Any]) -> None:
        """Loads what this source mentions, and what is small.

        Raises:
            ContextUnavailable: a file is missing, or is not what it was announced as.
        """
        for variable, (context, mention) in list(self._pending.items()):
            if context.size < EAGER_BYTES or mention.search(source):
                try:
                    namespace[variable] = self._load(context)
                except ContextUnavailable as error:
                    raise ContextUnavailable(f"{error}. The cell was not run") from None
                del self._pending[variable]

    def function(self) -> Callable[[str], Any]:
        """What the code calls to have a context again."""

        def load_context(name: str = "context") -> Any:
            """The data as it was given, read anew: `context = load_context()`."""
            if name not in self._files:
                known = ", ".join(self._files) or "none"
                raise NameError(f"load_context: there is no context named {str(name)[:80]!r}. Contexts: {known}")
            return self._load(self._files[name])

        load_context.__qualname__ = load_context.__name__
        load_context.__module__ = "__main__"
        return load_context

    def with_notes(
        self, variables: list[tuple[str, str, str]], namespace: dict[str, Any]
    ) -> list[tuple[str, str, str]]:
        """These variables, and the contexts not loaded yet; says of the others where they are no longer what was given.

        A loop such as `for context in parts` takes the data away without anybody's intention.
        """
        notes = {
            name: f"{_call(name)} has the data as given"
            for name, loaded in self._loaded.items()
            if id(namespace.get(name)) != loaded
        }
        if notes:
            noted = [
                (n, kind, "; ".join(filter(None, (size, notes.pop(n)))) if n in notes else size)
                for n, kind, size in variables
            ]
            gone = [(name, self._files[name].type_name, f"not bound; {note}") for name, note in notes.items()]
            variables = [*noted, *gone]
        if self._pending:
            taken = {name for name, _, _ in variables}
            waiting = [context for name, (context, _) in self._pending.items() if name not in taken]
            variables = variables + [(c.variable, c.type_name, f"{c.size:,} bytes, not loaded yet") for c in waiting]
        return variables

    def _load(self, context: ContextFile) -> Any:
        value = _load(context)
        self._loaded[context.variable] = id(value)
        return value


def _call(name: str) -> str:
    return "load_context()" if name == "context" else f"load_context({name!r})"


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
    raise ContextUnavailable(f"{context.variable} cannot be loaded: {reason}") from None


def _text(descriptor: int) -> str:
    """Decodes from the page cache: the text is in this process's memory once, not twice."""
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:
        return ""  # an empty file cannot be mapped
    with mapped:
        return str(mapped, "utf-8", "replace")
