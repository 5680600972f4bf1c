"""A server's life: opened, told to stop, drained, closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from orchestrator.build import import_model_libraries, open_orchestrator
from orchestrator.config import Config
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.hosting.sandbox_desk import SandboxDesk
from orchestrator.hosting.settings import HostingSettings
from orchestrator.protocol.rlm.v1 import server_pb2
from orchestrator.server.listening import Listening, ListenSettings, listening
from orchestrator.store.database import Store
from orchestrator.telemetry import TelemetrySettings
from orchestrator.telemetry import open as open_telemetry

NOTHING_TOLD = TelemetrySettings()


class Draining(Protocol):
    async def drain(self, grace_s: float) -> None: ...


class Service:
    """A server with all that is behind it.

    `metrics` is where they are served. `cleaned` says, for a person, what an earlier process had left.
    """

    def __init__(
        self,
        listening: Listening,
        runs: Draining,
        sandboxes: Draining,
        cleaned: tuple[str, ...],
        metrics: str | None = None,
    ) -> None:
        self.addresses = listening.addresses
        self.metrics = metrics
        self.cleaned = cleaned
        self._listening = listening
        self._runs = runs
        self._sandboxes = sandboxes

    async def drain(self, grace_s: float) -> None:
        """No new work; what runs gets so long to end, and is cancelled then. Watchers see the ends."""
        await self._listening.stop_serving()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._runs.drain(grace_s))
            group.create_task(self._sandboxes.drain(grace_s))


def default_store(config: Config) -> Path:
    """Where a server keeps its runs unless it is told otherwise."""
    return Path(config.state_dir) / "store" / "rlm.db"


def default_address(config: Config) -> str:
    return f"unix:{Path(config.state_dir).absolute()}/rlm.sock"


@asynccontextmanager
async def open_service(
    config: Config,
    store_path: Path,
    hosting: HostingSettings,
    listen: ListenSettings,
    telemetry: TelemetrySettings = NOTHING_TOLD,
    *,
    allow_weaker: bool = False,
) -> AsyncIterator[Service]:
    """Serves for the block; not before attacks on a sandbox of its own have failed, or `allow_weaker` is given.

    Raises `InvalidInput`, `SandboxUnavailable`, `StoreFailed`.
    """
    async with AsyncExitStack() as stack:
        told = stack.enter_context(open_telemetry(_completed(telemetry, config)))
        importing = asyncio.get_running_loop().run_in_executor(None, import_model_libraries)
        # The engine's side first: it makes and checks the state directory, in which the others may live.
        orchestrator = await stack.enter_async_context(open_orchestrator(config))
        await orchestrator.check_sandboxes(allow_weaker=allow_weaker)
        store = stack.enter_context(Store.open(store_path))
        told.watch_sandboxes(in_use=lambda: orchestrator.occupancy().in_use, idle=lambda: orchestrator.occupancy().idle)
        runs = await stack.enter_async_context(RunDesk.open(orchestrator, store, hosting, sinks_of=told.sinks))
        sandboxes = await stack.enter_async_context(SandboxDesk.open(runs))
        info = server_pb2.GetServerInfoResponse(
            version=version("rlm-orchestrator"),
            runtime=config.runtime or "",
            max_depth=min(hosting.max_depth, config.capacity),
            capacity=config.capacity,
            max_context_bytes=hosting.max_upload_bytes,
        )
        await importing
        listener = await stack.enter_async_context(
            listening(runs, sandboxes, info, listen, lambda: orchestrator.weaknesses)
        )
        metrics = f"http://{told.metrics_at}/metrics" if told.metrics_at is not None else None
        yield Service(listener, runs, sandboxes, orchestrator.cleaned, metrics)


async def serve(
    config: Config,
    store_path: Path,
    hosting: HostingSettings,
    listen: ListenSettings,
    *,
    stop: asyncio.Event,
    drain_grace_s: float,
    ready: Callable[[Service], None],
    telemetry: TelemetrySettings = NOTHING_TOLD,
    allow_weaker: bool = False,
) -> None:
    """Serves until `stop` is set, then drains. Raises what `open_service` raises."""
    async with open_service(config, store_path, hosting, listen, telemetry, allow_weaker=allow_weaker) as service:
        ready(service)
        await stop.wait()
        await service.drain(drain_grace_s)


def _completed(telemetry: TelemetrySettings, config: Config) -> TelemetrySettings:
    """With what must never be shown, and the models whose names are known."""
    keys = (config.api_key, *(endpoint.api_key for endpoint in config.endpoints.values()))
    models = (config.model_at(depth) for depth in range(config.max_depth + 1))
    return replace(telemetry, secrets=tuple(key for key in keys if key), models=tuple(models))
