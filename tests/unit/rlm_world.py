"""An RLM over fakes: a policy for a model, cells by `exec`, contexts in a folder, and every event on record."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.budget import Budget
from orchestrator.events import (
    BatchEnded,
    CellEnded,
    Event,
    EventLog,
    IterationEnded,
    ModelCallEnded,
    Outcome,
    QueryEnded,
    Record,
    RlmEnded,
    SandboxEnded,
    SpanKind,
)
from orchestrator.llm.metered import Metered
from orchestrator.rlm import RLM, Leaf, iterations_at
from orchestrator.rlm.deadline import in_time
from orchestrator.seams import LanguageModel
from orchestrator.testing.fake_model import FakeChatModel, Policy
from orchestrator.testing.fake_sandbox import FakeSandboxes
from orchestrator.values import (
    Attachment,
    Completion,
    Context,
    ContextInfo,
    ContextKind,
    Deadline,
    Limits,
    Message,
    Prompt,
)

E = TypeVar("E", bound=Event)


class FolderContexts:
    """A `ContextStore` that remembers what it holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0
        self.held: set[Path] = set()
        self.put_values: list[object] = []

    async def put(self, value: object) -> Context:
        self.put_values.append(value)
        if isinstance(value, str):
            return self._write(ContextKind.TEXT, "str", value.encode(), len(value), "characters")
        return self._write(ContextKind.JSON, type(value).__name__, json.dumps(value).encode(), 1, "items")

    async def put_attachment(self, attachment: Attachment) -> Context:
        self.put_values.append(attachment.data)
        return self._write(attachment.kind, "str", attachment.data, len(attachment.data), "characters")

    async def read_text(self, context: Context, limit_bytes: int) -> str:
        return context.path.read_text()

    async def drop(self, context: Context) -> None:
        self.held.remove(context.path)
        context.path.unlink()

    def _write(self, kind: ContextKind, type_name: str, data: bytes, length: int, unit: str) -> Context:
        self._written += 1
        path = self._folder / f"context-{self._written}"
        path.write_bytes(data)
        self.held.add(path)
        text = data.decode()
        return Context(path, ContextInfo(kind, type_name, len(data), length, unit, text[:100], ""))


class World:
    def __init__(
        self,
        folder: Path,
        policy: Policy,
        *,
        max_depth: int = 1,
        max_iterations: int = 20,
        sandboxes: FakeSandboxes | None = None,
        limits: Limits | None = None,
        plain_chars: int = 0,
    ) -> None:
        self.chat = FakeChatModel(policy)
        self.budget = Budget(limits or Limits())
        self.contexts = FolderContexts(folder)
        self.sandboxes = sandboxes or FakeSandboxes()
        self.records: list[Record] = []
        self.log = EventLog(self.records.append)
        self.run = self.log.root()
        metered = Metered(self.chat, self.budget)
        leaf = Leaf(metered, self.contexts)
        self.model: LanguageModel = leaf
        for depth in reversed(range(max_depth)):
            self.model = RLM(
                metered,
                self.model,
                self.sandboxes,
                self.contexts,
                depth=depth,
                max_depth=max_depth,
                max_iterations=iterations_at(depth, max_iterations),
                plain=leaf,
                plain_chars=plain_chars,
            )

    async def ask(
        self, query: str = "What is it?", context: object = None, *, seconds: float | None = None
    ) -> Completion:
        """With `seconds`, as a run with that `max_seconds`."""
        deadline = Deadline(asyncio.get_running_loop().time() + seconds, seconds) if seconds is not None else None
        stored = await self.contexts.put(context) if context is not None else None
        try:
            return await in_time(self.model.completion(Prompt(query, stored, deadline), self.run), deadline)
        finally:
            if stored is not None:
                await self.contexts.drop(stored)

    def all_of(self, kind: type[E]) -> list[E]:
        return [record.event for record in self.records if isinstance(record.event, kind)]

    def one(self, kind: type[E]) -> E:
        (event,) = self.all_of(kind)
        return event

    def assert_nothing_is_left(self) -> None:
        """Every span that started has ended, once, and after all beneath it; no sandbox and no context is left."""
        started: dict[int, Record] = {}
        ended: Counter[int] = Counter()
        for record in self.records:
            name = type(record.event).__name__
            if name.endswith("Started"):
                assert record.parent_id == self.run.id or record.parent_id not in ended, (
                    f"{name} after its parent's end"
                )
                started[record.span_id] = record
            elif name.endswith("Ended"):
                ended[record.span_id] += 1
                assert record.span_id in started, f"{name} without a start"
                open_below = [r for r in started.values() if r.parent_id == record.span_id and not ended[r.span_id]]
                assert not open_below, f"{name} before the end of {open_below}"
        assert set(started) == set(ended)
        assert set(ended.values()) <= {1}
        assert self.sandboxes.open_now == 0
        assert not self.contexts.held
        assert self.chat.in_flight == 0

    def outcomes(self, kind: SpanKind) -> list[Outcome]:
        ends = (RlmEnded, IterationEnded, ModelCallEnded, SandboxEnded, CellEnded, BatchEnded, QueryEnded)
        return [
            record.event.outcome for record in self.records if record.kind is kind and isinstance(record.event, ends)
        ]


def replies(*texts: str | Exception) -> Callable[[Sequence[Message]], str | Exception]:
    """A policy that gives one after the other, whatever is asked."""
    left: Iterator[str | Exception] = iter(texts)
    return lambda _: next(left)


def code(*lines: str) -> str:
    return "\n".join(["```repl", *lines, "```"])


def is_leaf(messages: Sequence[Message]) -> bool:
    """Whether a plain sub-call asks: it has no system prompt."""
    return len(messages) == 1


def depth_of(messages: Sequence[Message]) -> int:
    """The depth of the RLM that asks, as its system prompt says."""
    _, found, tail = messages[0].content.partition("sub-call at depth ")
    return int(tail.split()[0]) if found else 0
