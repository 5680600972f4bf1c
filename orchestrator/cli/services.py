"""What the commands need of the rest of the system, as one value that a test replaces.

The real one imports Docker, gRPC and OpenAI only when a command opens the orchestrator.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from orchestrator.client.calls import Client
    from orchestrator.client.remote import Remote
    from orchestrator.config import Config
    from orchestrator.events import Sink
    from orchestrator.sandbox.engine import Engine
    from orchestrator.sandbox.self_check import Findings
    from orchestrator.seams import OutputSink
    from orchestrator.values import CellResult, Ending, Spent


class Result(Protocol):
    """`build.RunResult`, as far as the commands read it."""

    @property
    def run_id(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def ending(self) -> Ending: ...
    @property
    def spent(self) -> Spent: ...
    @property
    def by_model(self) -> Mapping[str, Spent]: ...
    @property
    def by_depth(self) -> Mapping[int, Spent]: ...
    @property
    def seconds(self) -> float: ...


class Cells(Protocol):
    """A sandbox, as far as the commands use it."""

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult: ...


class Orchestrating(Protocol):
    """`build.Orchestrator`, as far as the commands use it."""

    @property
    def cleaned(self) -> Sequence[str]: ...
    async def ask(self, query: str, context: object = None, *, sinks: Sequence[Sink] = ()) -> Result: ...
    def sandbox(self, context: object = None) -> AbstractAsyncContextManager[Cells]: ...


class Local(Orchestrating, Protocol):
    """One of this process: it can also be looked at."""

    async def probe_sandboxes(self) -> Findings: ...


@asynccontextmanager
async def _open(config: Config) -> AsyncIterator[Local]:
    from orchestrator.build import open_orchestrator

    async with open_orchestrator(config) as orchestrator:
        yield orchestrator


@asynccontextmanager
async def _engine() -> AsyncIterator[Engine]:
    from orchestrator.sandbox.engine_docker import DockerEngine

    engine = DockerEngine(call_timeout_s=10.0)
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def _connect(server: str, overrides: Mapping[str, object], environ: Mapping[str, str]) -> AsyncIterator[Remote]:
    from orchestrator.client.remote import Remote

    async with connected(server, environ) as client:
        yield Remote(client, overrides)


@asynccontextmanager
async def connected(server: str, environ: Mapping[str, str]) -> AsyncIterator[Client]:
    """A client with the token and the authorities of the environment, of a server that answers.

    It must answer at once: a person who waits would be told too late that there is none. Later on, a connection that
    is lost, or a restart of the server, is waited for. Raises `InvalidInput`, `ServiceFailed`.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC would write to stderr, our errors say
    from orchestrator.client.calls import Client

    async with Client(server, environ.get("RLM_TOKEN") or None, ca=environ.get("RLM_SERVER_CA") or None) as client:
        await client.info(again=False)
        yield client


@dataclass(frozen=True, slots=True)
class Services:
    open: Callable[[Config], AbstractAsyncContextManager[Local]] = _open
    engine: Callable[[], AbstractAsyncContextManager[Engine]] = _engine
    connect: Callable[[str, Mapping[str, object], Mapping[str, str]], AbstractAsyncContextManager[Orchestrating]] = (
        _connect
    )
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    dotenv: Path | None = Path(".env")

    def load(self, overrides: Mapping[str, object]) -> Config:
        """The settings, with the options given. Raises `InvalidInput`."""
        from orchestrator.config import Config

        return Config.load(overrides, environ=self.environ, dotenv=self.dotenv)

    def opened(
        self, server: str | None, config: Config, overrides: Mapping[str, object]
    ) -> AbstractAsyncContextManager[Orchestrating]:
        """A server that is named, or an orchestrator of this process. A server gets only what was given."""
        named = self.named(server)
        return self.open(config) if named is None else self.connect(named, overrides, self.environ)

    def named(self, server: str | None) -> str | None:
        """The server of the option, or of the environment."""
        return server or self.environ.get("RLM_SERVER") or None

    def server(self, given: str | None) -> str:
        """The server that is named, or that of this machine and user."""
        return self.named(given) or f"unix:{self._state_dir / 'rlm.sock'}"

    @property
    def store(self) -> Path:
        """Where the server of this machine and user keeps its runs."""
        return self._state_dir / "store" / "rlm.db"

    @property
    def _state_dir(self) -> Path:
        return Path(self.load({}).state_dir).absolute()


def current() -> Services:
    """The services of the command that runs now."""
    found = click.get_current_context().find_object(Services)
    return found if found is not None else Services()
