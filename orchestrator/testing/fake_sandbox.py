"""Sandboxes that isolate nothing: cells run by `exec` in threads of this process. For tests of what uses sandboxes.

They keep the contract of `seams.Sandbox` (the same suite runs on them and on the real ones): one live namespace, output
captured apart for each sandbox, `context`, `llm_query`, `llm_batch`, `FINAL`, `FINAL_VAR`, `SHOW_VARS`, `answer`,
interrupts, time limits whose clock stops while a question is out, loss.

What they do not do: contain anything; capture what subprocesses, C code or the cell's own threads print; survive
`os._exit`; stop code that is stuck in a call into C (its thread is left behind, and the namespace is new); run
top-level `await` or offer awaitable queries; limit memory, processes or disk.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from orchestrator.errors import FileFailed, FileFailure, LossCause, SandboxLost, SandboxUnavailable
from orchestrator.sandbox.cell import check_time_limit
from orchestrator.sandbox.files import check_path, check_size
from orchestrator.seams import Answer, OutputSink
from orchestrator.testing.fake_cell import CellThread, Namespace, RunningCell, routing
from orchestrator.values import (
    Answered,
    Attachment,
    Batch,
    CellResult,
    CellStatus,
    Context,
    ContextKind,
    DeathCause,
    Failed,
    FailureReason,
    FinalAnswer,
    Question,
    Slot,
    Variable,
    WorkerDeath,
)


@dataclass(frozen=True, slots=True)
class Loss:
    """A sandbox to lose in its `cell`-th cell, which does not run. Both count from 1; None is each sandbox."""

    cell: int = 1
    cause: LossCause = LossCause.EXITED
    sandbox: int | None = None


class SubcallError(str):
    """What stands in for an answer that could not be had."""

    __slots__ = ("reason",)
    failed = True
    reason: str

    def __new__(cls, slot: Failed) -> SubcallError:
        self = super().__new__(cls, f"Error: {slot.message}")
        self.reason = slot.reason.value
        return self


class SubcallFailed(RuntimeError):
    """The same with `strict=True`."""


class FakeSandboxes:
    """A `SandboxFactory`, and the record of how it was used."""

    def __init__(
        self,
        *,
        losses: Sequence[Loss] = (),
        refuse: SandboxUnavailable | None = None,
        default_time_limit_s: float = 60.0,
        grace_s: float = 2.0,
        output_head_bytes: int = 32_768,
        output_tail_bytes: int = 32_768,
    ) -> None:
        self._losses = tuple(losses)
        self._refuse = refuse
        self.default_time_limit_s = default_time_limit_s
        self.grace_s = grace_s
        self.output_caps = (output_head_bytes, output_tail_bytes)
        self.live: list[FakeSandbox] = []  # that are open, in order
        self.opened = 0
        self.closed = 0
        self.peak = 0  # the most that were open at one time
        self.heights: list[int] = []  # as asked for, in order
        self.cells: list[tuple[str, str]] = []  # (sandbox, code), in order

    @property
    def open_now(self) -> int:
        return self.opened - self.closed

    @asynccontextmanager
    async def open(
        self, context: Context | None, answer: Answer | None, *, height: int = 0
    ) -> AsyncIterator[FakeSandbox]:
        """See `SandboxFactory.open`. Raises the `refuse` that it was made with."""
        self.heights.append(height)
        if self._refuse is not None:
            raise self._refuse
        self.opened += 1
        self.peak = max(self.peak, self.open_now)
        ordinal = self.opened
        losses = {loss.cell: loss.cause for loss in self._losses if loss.sandbox in (None, ordinal)}
        routing.enter()
        sandbox = FakeSandbox(self, f"fake-{ordinal}", context, answer, losses)
        self.live.append(sandbox)
        try:
            yield sandbox
        finally:
            self.live.remove(sandbox)
            await sandbox.close()
            routing.leave()
            self.closed += 1


class FakeSandbox:
    """One namespace, and one cell at a time in it."""

    warm = False

    def __init__(
        self,
        owner: FakeSandboxes,
        name: str,
        context: Context | None,
        answer: Answer | None,
        losses: dict[int, LossCause],
    ) -> None:
        self._owner = owner
        self._name = name
        self._context = context
        self._answer = answer
        self._losses = losses
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._cell: RunningCell | None = None
        self._lost: SandboxLost | None = None
        self._files: dict[str, bytes] = {}
        self._gone = asyncio.Event()
        self._namespace = self._fresh_namespace()

    @property
    def name(self) -> str:
        return self._name

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        """See `Sandbox.run`."""
        check_time_limit(time_limit_s)
        if self._lost is not None:
            raise self._lost
        number = next(self._numbers)
        self._owner.cells.append((self._name, code))
        if (cause := self._losses.get(number)) is not None:
            self._lose(cause, f"told to be lost at cell {number}")
        limit = self._owner.default_time_limit_s if time_limit_s is None else time_limit_s
        cell = RunningCell(self._owner.output_caps, on_output, self._loop)
        self._cell = cell
        thread = CellThread(code, f"<cell {number}>", self._namespace, cell.write, cell.ended)
        thread.start()
        try:
            return await self._finish(cell, thread, limit)
        except asyncio.CancelledError:
            thread.interrupt()
            await cell.cancel_questions()
            await cell.wait(self._owner.grace_s)
            self._set_lost(LossCause.CLOSED, "its run was cancelled")
            raise
        finally:
            self._cell = None
            await cell.cancel_questions()

    async def interrupt(self) -> None:
        """See `Sandbox.interrupt`."""
        if self._cell is not None:
            self._cell.stop(DeathCause.INTERRUPTED)

    async def add_context(self, context: Context, variable: str) -> None:
        """See `Sandbox.add_context`."""
        self._check_there()
        self._namespace[variable] = _load(context)
        self._scaffold.add(variable)

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`; the files are in no folder of this machine."""
        check_path(path)
        check_size(path, len(data))
        self._check_there()
        self._files[path] = data

    async def read_file(self, path: str) -> bytes:
        """See `Sandbox.read_file`."""
        check_path(path)
        self._check_there()
        if path not in self._files:
            raise FileFailed(FileFailure.NOT_FOUND, path, "there is none.")
        return self._files[path]

    async def lost(self) -> SandboxLost:
        """See `Sandbox.lost`."""
        await self._gone.wait()
        assert self._lost is not None
        return self._lost

    async def close(self) -> None:
        self._set_lost(LossCause.CLOSED, "")

    def lose(self, cause: LossCause = LossCause.EXITED, detail: str = "told to be lost") -> None:
        """Loses it now; a cell that runs ends by it."""
        self._set_lost(cause, detail)

    def _set_lost(self, cause: LossCause, detail: str) -> None:
        if self._lost is None:  # the first cause stands
            self._lost = SandboxLost(self._name, cause, detail)
            self._gone.set()
            if self._cell is not None:
                self._cell.fail(self._lost)

    def _check_there(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _lose(self, cause: LossCause, detail: str) -> NoReturn:
        self._set_lost(cause, detail)
        assert self._lost is not None
        raise self._lost

    async def _finish(self, cell: RunningCell, thread: CellThread, limit: float) -> CellResult:
        await cell.wait_for_end_or_stop(limit)
        stopped = cell.stopped
        if stopped is not None or cell.failure is not None:
            thread.interrupt()
            await cell.cancel_questions()
            ended = await cell.wait(self._owner.grace_s)
            if cell.failure is not None:
                self._set_lost(LossCause.CLOSED, "its run was given up")
                raise cell.failure
            if not ended:
                self._namespace = self._fresh_namespace()
                return cell.result(CellStatus.WORKER_DIED, death=WorkerDeath(stopped or DeathCause.INTERRUPTED))
        status = CellStatus.OK if thread.error is None else CellStatus.ERROR
        if stopped is not None and thread.interrupted:
            timed_out = stopped is DeathCause.TIMED_OUT
            status = CellStatus.TIMED_OUT if timed_out else CellStatus.INTERRUPTED
        return cell.result(status, error=thread.error, final=self._final(), variables=self._variables())

    # --- what the code finds in its namespace ---

    def _fresh_namespace(self) -> Namespace:
        self._declared: list[object] = []
        scaffold: Namespace = {"__name__": "__main__", "FINAL": self._declared.append, "FINAL_VAR": self._final_var}
        scaffold["SHOW_VARS"] = lambda: "\n".join(f"{v.name}: {v.type_name}" for v in self._variables())
        if (context := self._context) is not None:
            scaffold |= {"context": _load(context), "load_context": lambda: _load(context)}
        if self._answer is not None:
            scaffold |= {"llm_query": self._llm_query, "rlm_query": partial(self._llm_query, recursive=True)}
            scaffold["failed"] = lambda answer: isinstance(answer, SubcallError)
            scaffold |= {"SubcallError": SubcallError, "SubcallFailed": SubcallFailed}
            scaffold |= dict.fromkeys(("llm_batch", "llm_query_batched"), self._llm_batch)
            scaffold["rlm_query_batched"] = partial(self._llm_batch, recursive=True)
        self._scaffold = {*scaffold, "__builtins__"}
        return scaffold

    def _final_var(self, value: object) -> None:
        if isinstance(value, str):
            if value not in self._namespace:
                raise NameError(f"FINAL_VAR: no variable {value!r}; there are: {[v.name for v in self._variables()]}")
            value = self._namespace[value]
        self._declared.append(value)

    def _final(self) -> FinalAnswer | None:
        said = self._namespace.get("answer")
        declared, self._declared[:] = list(self._declared), []
        if declared:
            value = declared[-1]
        elif isinstance(said, dict) and said.get("ready") is True and "content" in said:
            value = said["content"]
        else:
            return None
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
        return FinalAnswer(text=text, type_name=type(value).__name__, length=len(text))

    def _variables(self) -> tuple[Variable, ...]:
        own = [(n, v) for n, v in self._namespace.items() if n not in self._scaffold and not n.startswith("_")]
        return tuple(Variable(name, type(value).__name__, _size(value)) for name, value in reversed(own))

    def _llm_query(
        self, prompt: object, context: object = None, strict: bool = False, recursive: bool | None = None
    ) -> str:
        if not isinstance(prompt, str):
            raise TypeError(f"llm_query: prompt must be a str, not {type(prompt).__name__}")
        return self._ask(Batch((Question(prompt, _attach(context)),), 1, strict, recursive))[0]

    def _llm_batch(
        self,
        prompts: object,
        max_concurrent: int = 10,
        contexts: list[object] | None = None,
        strict: bool = False,
        recursive: bool | None = None,
    ) -> list[str]:
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("llm_batch: prompts must be a list of str")
        if max_concurrent < 1:
            raise ValueError("llm_batch: max_concurrent must be at least 1")
        given = contexts if contexts is not None else [None] * len(prompts)
        questions = tuple(Question(prompt, _attach(data)) for prompt, data in zip(prompts, given, strict=True))
        return self._ask(Batch(questions, max_concurrent, strict, recursive)) if prompts else []

    def _ask(self, batch: Batch) -> list[str]:
        cell, answer = self._cell, self._answer
        if cell is None or answer is None:
            raise RuntimeError("a question can only be asked while a cell runs")

        async def ask() -> Sequence[Slot]:
            try:
                return await answer(batch)
            except Exception as error:
                # The caller's failure and not the code's: it comes out of `run`.
                cell.fail(error)
                raise

        slots = cell.ask(ask())
        lost = [slot for slot in slots if isinstance(slot, Failed)]
        if lost and batch.stop_at_failure:
            raise SubcallFailed(min(lost, key=lambda slot: slot.reason is FailureReason.CANCELLED).message)
        return [slot.text if isinstance(slot, Answered) else SubcallError(slot) for slot in slots]


_LOADERS: dict[ContextKind, Callable[[bytes], object]] = {
    ContextKind.TEXT: lambda data: data.decode("utf-8", "replace"),
    ContextKind.JSON: json.loads,
    ContextKind.BYTES: bytes,
}


def _load(context: Context) -> object:
    return _LOADERS[context.info.kind](context.path.read_bytes())


def _attach(value: object) -> Attachment | None:
    match value:
        case None:
            return None
        case str():
            return Attachment(ContextKind.TEXT, value.encode("utf-8", "replace"))
        case bytes():
            return Attachment(ContextKind.BYTES, value)
        case _:
            return Attachment(ContextKind.JSON, json.dumps(value, ensure_ascii=False).encode())


def _size(value: object) -> str:
    match value:
        case str():
            return f"{len(value):,} characters"
        case list() | dict() | tuple() | set():
            return f"{len(value):,} items"
        case _:
            return ""
