"""An orchestrator without models and containers, for the tests of the command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from click.testing import CliRunner, Result

from orchestrator.cli.command import rlm
from orchestrator.cli.services import Services
from orchestrator.config import Config
from orchestrator.errors import SandboxUnavailable
from orchestrator.events import Sink
from orchestrator.sandbox.engine import ContainerExit, ContainerSpec, EngineInfo, OwnedContainer
from orchestrator.sandbox.self_check import Findings
from orchestrator.seams import OutputSink
from orchestrator.values import CellResult, CellStatus, Ending, OutputChunk, Spent, Usage
from tests.unit.sample_runs import whole_run

SPENT = Spent(calls=5, usage=Usage(500, 100), cost_usd=0.023, sandboxes=2)


@dataclass(frozen=True)
class FakeResult:
    run_id: str = "run_1"
    answer: str = "The gardener."
    ending: Ending = Ending.FINAL
    spent: Spent = SPENT
    by_model: Mapping[str, Spent] = field(default_factory=lambda: {"big": SPENT})
    by_depth: Mapping[int, Spent] = field(default_factory=lambda: {0: SPENT})
    seconds: float = 4.2


@dataclass
class FakeSandbox:
    result: CellResult = field(default_factory=lambda: CellResult(CellStatus.OK))
    chunks: Sequence[OutputChunk] = ()
    name: str = "sandbox-0"
    warm: bool = True
    codes: list[str] = field(default_factory=list)
    time_limits: list[float | None] = field(default_factory=list)

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        self.codes.append(code)
        self.time_limits.append(time_limit_s)
        for chunk in self.chunks:
            if on_output is not None:
                on_output(chunk)
        return self.result

    async def interrupt(self) -> None: ...


@dataclass
class FakeOrchestrator:
    """`answers` decides what a run comes to; by default it plays a whole run to the sinks."""

    cleaned: tuple[str, ...] = ()
    answers: Callable[[Sequence[Sink]], Awaitable[FakeResult]] | None = None
    box: FakeSandbox = field(default_factory=FakeSandbox)
    asked: list[tuple[str, object]] = field(default_factory=list)
    configs: list[Config] = field(default_factory=list)
    contexts: list[object] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    closed: int = 0

    @asynccontextmanager
    async def open(self, config: Config) -> AsyncIterator[FakeOrchestrator]:
        self.configs.append(config)
        try:
            yield self
        finally:
            self.closed += 1

    async def ask(self, query: str, context: object = None, *, sinks: Sequence[Sink] = ()) -> FakeResult:
        self.asked.append((query, context))
        if self.answers is not None:
            return await self.answers(sinks)
        whole_run(*sinks)
        return FakeResult()

    async def probe_sandboxes(self) -> Findings:
        return self.findings

    @asynccontextmanager
    async def sandbox(self, context: object = None) -> AsyncIterator[FakeSandbox]:
        self.contexts.append(context)
        yield self.box


@dataclass
class FakeEngine:
    """An engine with one image and containers of given owners; None for `info_` is an engine that is not there."""

    info_: EngineInfo | None = field(
        default_factory=lambda: EngineInfo(
            "29.5.3", "1.52", "2", ("runc",), "runc", ("name=seccomp,profile=builtin",), "http+docker://localhost"
        )
    )
    image_id: str | None = "sha256:" + "a" * 64
    containers: list[OwnedContainer] = field(default_factory=list)
    destroyed: list[str] = field(default_factory=list)

    async def info(self) -> EngineInfo:
        if self.info_ is None:
            raise SandboxUnavailable("no Docker engine answers at unix:///x.", "Start it.")
        return self.info_

    async def resolve_image(self, image: str) -> str:
        if self.image_id is None:
            raise SandboxUnavailable(f"the sandbox image {image} is not on this engine.", "Build it: make image")
        return self.image_id

    async def start(self, spec: ContainerSpec) -> None: ...

    async def wait_exit(self, name: str, timeout_s: float) -> ContainerExit | None:
        return None

    async def destroy(self, name: str) -> None:
        self.destroyed.append(name)

    async def owned(self, state_id: str) -> list[OwnedContainer]:
        return [each for each in self.containers if each.name not in self.destroyed]

    async def close(self) -> None: ...


def run_cli(
    *arguments: str,
    orchestrator: FakeOrchestrator | None = None,
    engine: FakeEngine | None = None,
    environ: Mapping[str, str] | None = None,
    stdin: str | bytes | None = None,
) -> Result:
    """The command's exit code, stdout and stderr, with fakes behind it and nothing of the machine's own settings."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[FakeEngine]:
        yield engine or FakeEngine()

    services = Services(
        open=(orchestrator or FakeOrchestrator()).open, engine=opened, environ=environ or {}, dotenv=None
    )
    return CliRunner().invoke(rlm, list(arguments), obj=services, input=stdin)
