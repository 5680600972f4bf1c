"""The Python library: `RLM` and `Sandbox` for programs, synchronous and asynchronous alike.

::

    from orchestrator import RLM, Sandbox

    rlm = RLM(model="gpt-5", recursive_model="gpt-5-mini", max_depth=2)
    answer = rlm.completion(context=open("big.txt").read(), query="Who is the murderer?")

    async with Sandbox() as sandbox:
        result = await sandbox.run("sum(range(10))")

All of a process shares one event loop (in a thread of its own), one API client and one set of sandboxes per host
configuration; they are opened when first needed and closed when the process ends, or by `close()`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import msgspec

from orchestrator.build import Orchestrator, RunResult, open_orchestrator
from orchestrator.config import Config
from orchestrator.errors import InvalidInput, LossCause, SandboxLost
from orchestrator.events import Sink
from orchestrator.folds.log_lines import LogSink
from orchestrator.folds.log_setup import show_logs
from orchestrator.held import Held
from orchestrator.loop_thread import before_exit, process_loop
from orchestrator.seams import OutputSink
from orchestrator.seams import Sandbox as SandboxSeam
from orchestrator.values import CellResult

DEFAULT_QUERY = "Read the context and answer the question, or do the task, that it states."


class RLM:
    """A Recursive Language Model (arXiv 2512.24601): answers a query over a context of any size.

    `model` writes the root's code, `recursive_model` (the same when unset) answers its sub-calls. Depth d has a REPL in
    a container of its own when d < `max_depth`; sub-calls below are plain completions. `enable_logging` writes lines
    prefixed `[Depth d]` to stderr. Every other setting of `Config` can be given by name, for example
    `max_cost_usd=0.5`, `base_url="http://127.0.0.1:8000/v1"` or `memory_mib=4096`; what is not given comes from the
    environment and `.env`. `sinks` see every event: one set for all runs, or a function that gives each its own.

    Raises `InvalidInput` for a setting that breaks its rule.
    """

    def __init__(
        self,
        model: str | None = None,
        recursive_model: str | None = None,
        max_iterations: int | None = None,
        max_depth: int | None = None,
        enable_logging: bool = False,
        *,
        sinks: Sequence[Sink] | Callable[[], Sequence[Sink]] = (),
        **settings: Any,
    ) -> None:
        named = {
            "model": model,
            "recursive_model": recursive_model,
            "max_iterations": max_iterations,
            "max_depth": max_depth,
        }
        self._config = Config.load({**named, **settings})
        self._sinks = sinks if callable(sinks) else lambda: sinks
        self._logs: tuple[Sink, ...] = ()
        if enable_logging:
            self._logs = (LogSink(),)
            keys = (self._config.api_key, *(each.api_key for each in self._config.endpoints.values()))
            show_logs(keys)

    @property
    def config(self) -> Config:
        return self._config

    def completion(self, context: object = None, query: str | None = None) -> str:
        """The answer. `context` is a str, list, dict, bytes, or a `pathlib.Path` of a file; see `run` for more.

        Raises the errors of `orchestrator.errors`.
        """
        return self.run(context, query).answer

    async def acompletion(self, context: object = None, query: str | None = None) -> str:
        """The async twin of `completion`, usable in any event loop."""
        return (await self.arun(context, query)).answer

    def run(self, context: object = None, query: str | None = None) -> RunResult:
        """The answer with what it took: how it ended, usage and cost by model and by depth, seconds."""
        return process_loop().call(self._ask(context, query))

    async def arun(self, context: object = None, query: str | None = None) -> RunResult:
        """The async twin of `run`."""
        return await process_loop().call_async(self._ask(context, query))

    async def _ask(self, context: object, query: str | None) -> RunResult:
        if query is None and context is None:
            raise InvalidInput("query", "is missing, and so is the context.", "Give at least one of them.")
        orchestrator = await _shared(self._config)
        sinks = (*self._sinks(), *self._logs)
        return await orchestrator.ask(query or DEFAULT_QUERY, context, settings=self._config, sinks=sinks)


RLM_REPL = RLM


class Sandbox:
    """A single-use container for Python code that is not trusted; no model, no network.

    ::

        async with Sandbox(memory_mib=512) as sandbox:
            result = await sandbox.run("1 + 1")      # result.stdout.text == "2\\n"

        with Sandbox(context={"a": 1}) as sandbox:   # the synchronous form
            result = sandbox.run_sync("context['a']")

    `settings` are those of `Config`. Raises `SandboxUnavailable` on entering, `SandboxLost` on running.
    """

    def __init__(self, context: object = None, **settings: Any) -> None:
        self._context = context
        self._config = Config.load(settings)
        self._held: Held[SandboxSeam] | None = None

    async def __aenter__(self) -> Sandbox:
        try:
            await process_loop().call_async(self._open())
        except BaseException:
            # Cancelled just after it was opened: nobody else will close it.
            await process_loop().call_async(self._close())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await process_loop().call_async(self._close())

    def __enter__(self) -> Sandbox:
        try:
            process_loop().call(self._open())
        except BaseException:
            process_loop().call(self._close())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process_loop().call(self._close())

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        """Runs a cell in the sandbox's one namespace; what the code does wrong is in the result, not raised."""
        return await process_loop().call_async(self._run(code, on_output, time_limit_s))

    def run_sync(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        """The synchronous twin of `run`."""
        return process_loop().call(self._run(code, on_output, time_limit_s))

    async def interrupt(self) -> None:
        """Stops the running cell as Ctrl-C would; variables are kept."""
        await process_loop().call_async(self._live().interrupt())

    async def _run(self, code: str, on_output: OutputSink | None, time_limit_s: float | None) -> CellResult:
        limit = self._config.cell_timeout_s if time_limit_s is None else time_limit_s
        return await self._live().run(code, on_output, time_limit_s=limit)

    def _live(self) -> SandboxSeam:
        if self._held is None:
            raise SandboxLost("(not open)", LossCause.CLOSED, "use it inside its `with` block")
        return self._held.value

    async def _open(self) -> None:
        orchestrator = await _shared(self._config)
        self._held = await Held.enter(orchestrator.sandbox(self._context))

    async def _close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.leave()


# One per host configuration. Touched only in the process's loop, so they need no lock.
_orchestrators: dict[bytes, asyncio.Task[Held[Orchestrator]]] = {}


async def _shared(config: Config) -> Orchestrator:
    host = config.host()
    key = msgspec.json.encode(host)
    if key not in _orchestrators:
        _orchestrators[key] = asyncio.create_task(Held.enter(open_orchestrator(host)))
    opening = _orchestrators[key]
    try:
        return (await asyncio.shield(opening)).value
    finally:
        if _has_failed(opening) and _orchestrators.get(key) is opening:
            del _orchestrators[key]  # so that the next call tries again


def _has_failed(opening: asyncio.Task[Held[Orchestrator]]) -> bool:
    """Whether nothing was opened: of whatever, a disk without room and a cancellation included."""
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


def close() -> None:
    """Ends what the process's RLMs and sandboxes share: containers, connections. Done at exit anyway."""
    process_loop().call(_close_all())


async def _close_all() -> None:
    while _orchestrators:
        _, opening = _orchestrators.popitem()
        await asyncio.wait({opening})
        if not _has_failed(opening):
            await opening.result().leave()


before_exit(_close_all)
os.register_at_fork(after_in_child=_orchestrators.clear)  # they are the parent's, as is the loop that they live in
