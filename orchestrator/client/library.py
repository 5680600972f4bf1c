"""`RLM` and `Sandbox` of a server, with the library's interface: synchronous and asynchronous alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.client.calls import Client
from orchestrator.client.remote import Remote, run_settings
from orchestrator.client.sandboxes import RemoteSandbox, open_sandbox
from orchestrator.errors import InvalidInput, LossCause, SandboxLost
from orchestrator.events import Sink
from orchestrator.folds.log_lines import LogSink
from orchestrator.folds.log_setup import show_logs
from orchestrator.held import Held
from orchestrator.loop_thread import before_exit, process_loop
from orchestrator.seams import OutputSink
from orchestrator.values import CellResult, Limits, RunResult

DEFAULT_QUERY = "Read the context and answer the question, or do the task, that it states."

# One per server and token. Touched only in the process's loop, so they need no lock.
_clients: dict[tuple[str, str | None, str | None], Client] = {}


class _Server:
    """Which server: given, or from RLM_SERVER and RLM_TOKEN. Checked when it is made."""

    def __init__(self, server: str | None, token: str | None, ca: Path | str | None) -> None:
        server = server or os.environ.get("RLM_SERVER")
        if not server:
            raise InvalidInput("server", "is missing.", "Give server='unix:/path' or 'host:port', or set RLM_SERVER.")
        self._key = (server, token or os.environ.get("RLM_TOKEN") or None, str(ca) if ca is not None else None)
        Client(server, self._key[1], ca=ca)

    def client(self) -> Client:
        """Call it in the process's loop."""
        if self._key not in _clients:
            _clients[self._key] = Client(self._key[0], self._key[1], ca=self._key[2])
        return _clients[self._key]


class RLM:
    """`orchestrator.RLM`, run by a server. Settings that are not given are the server's, not this process's.

    `sinks` get the run's records while it runs. Cancelling a call, or Ctrl-C, cancels the run on the server.

    Raises `InvalidInput` for a setting that breaks its rule or is not a run's own, such as `memory_mib`.
    """

    def __init__(
        self,
        model: str | None = None,
        recursive_model: str | None = None,
        max_iterations: int | None = None,
        max_depth: int | None = None,
        enable_logging: bool = False,
        *,
        server: str | None = None,
        token: str | None = None,
        ca: Path | str | None = None,
        labels: Mapping[str, str] | None = None,
        sinks: Sequence[Sink] = (),
        **settings: Any,
    ) -> None:
        named = {
            "model": model,
            "recursive_model": recursive_model,
            "max_iterations": max_iterations,
            "max_depth": max_depth,
        }
        self._server = _Server(server, token, ca)
        self._settings = run_settings({**named, **settings})
        self._labels = labels
        self._sinks = tuple(sinks)
        if enable_logging:
            self._sinks += (LogSink(),)
            show_logs()

    def completion(self, context: object = None, query: str | None = None) -> str:
        """See `orchestrator.RLM.completion`."""
        return self.run(context, query).answer

    async def acompletion(self, context: object = None, query: str | None = None) -> str:
        return (await self.arun(context, query)).answer

    def run(self, context: object = None, query: str | None = None) -> RunResult:
        return process_loop().call(self._ask(context, query))

    async def arun(self, context: object = None, query: str | None = None) -> RunResult:
        return await process_loop().call_async(self._ask(context, query))

    async def _ask(self, context: object, query: str | None) -> RunResult:
        if query is None and context is None:
            raise InvalidInput("query", "is missing, and so is the context.", "Give at least one of them.")
        remote = Remote(self._server.client(), self._settings, self._labels)
        return await remote.ask(query or DEFAULT_QUERY, context, sinks=self._sinks)


RLM_REPL = RLM


class Sandbox:
    """`orchestrator.Sandbox`, kept by a server; with `model`, its code has llm_query and llm_batch within `limits`.

    Raises `InvalidInput`; `SandboxUnavailable`, `QuotaExceeded` on entering; `SandboxLost` on running.
    """

    def __init__(
        self,
        context: object = None,
        *,
        server: str | None = None,
        token: str | None = None,
        ca: Path | str | None = None,
        model: str | None = None,
        limits: Limits | None = None,
        idle_timeout_s: float | None = None,
        cell_timeout_s: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._server = _Server(server, token, ca)
        self._context = context
        self._order = {"model": model, "limits": limits, "idle_timeout_s": idle_timeout_s, "labels": labels}
        self._cell_timeout_s = cell_timeout_s
        self._held: Held[RemoteSandbox] | None = None

    async def __aenter__(self) -> Sandbox:
        await process_loop().call_async(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await process_loop().call_async(self._close())

    def __enter__(self) -> Sandbox:
        process_loop().call(self._open())
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
        return process_loop().call(self._run(code, on_output, time_limit_s))

    async def interrupt(self) -> None:
        """Stops the running cell as Ctrl-C would; variables are kept."""
        await process_loop().call_async(self._live().interrupt())

    async def write_file(self, path: str, data: bytes) -> None:
        """Writes a file below the sandbox's /tmp. Raises `FileFailed`."""
        await process_loop().call_async(self._live().write_file(path, data))

    async def read_file(self, path: str) -> bytes:
        """Raises `FileFailed`."""
        return await process_loop().call_async(self._live().read_file(path))

    def write_file_sync(self, path: str, data: bytes) -> None:
        process_loop().call(self._live().write_file(path, data))

    def read_file_sync(self, path: str) -> bytes:
        return process_loop().call(self._live().read_file(path))

    async def _run(self, code: str, on_output: OutputSink | None, time_limit_s: float | None) -> CellResult:
        limit_s = self._cell_timeout_s if time_limit_s is None else time_limit_s
        return await self._live().run(code, on_output, time_limit_s=limit_s)

    def _live(self) -> RemoteSandbox:
        if self._held is None:
            raise SandboxLost("(not open)", LossCause.CLOSED, "use it inside its `with` block")
        return self._held.value

    async def _open(self) -> None:
        opened: AbstractAsyncContextManager[RemoteSandbox] = open_sandbox(
            self._server.client(), self._context, **self._order
        )
        self._held = await Held.enter(opened)

    async def _close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.leave()


def close() -> None:
    """Ends the connections that the process's clients share. Done at exit anyway."""
    process_loop().call(_close_all())


async def _close_all() -> None:
    while _clients:
        _, client = _clients.popitem()
        await client.close()


before_exit(_close_all)
