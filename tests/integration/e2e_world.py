"""The whole product around a scripted server: real engine, real containers, the state directory of the test's fixture.

A world checks that no request is in flight at its end, and that each span of each run has its end. The fixture
`no_leaks` looks for the rest: containers, tasks, directories, records.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.build import Orchestrator, RunResult, open_orchestrator
from orchestrator.config import Config
from orchestrator.events import Event, Record, Sink
from orchestrator.sandbox.engine_docker import DockerEngine
from orchestrator.sandbox.state_dir import open_state_dir
from orchestrator.testing.scripted import Policy, ScriptedServer

E = TypeVar("E", bound=Event)
IMAGE = "rlm-sandbox:slim"


def reply(code: str) -> str:
    """What a model says that writes one block of code."""
    return f"I look.\n\n```repl\n{code}\n```\n"


def models(max_depth: int) -> tuple[str, ...]:
    """The models' names by depth: depth-0, ..., and leaf for the plain sub-calls."""
    return (*(f"depth-{depth}" for depth in range(max_depth)), "leaf")


def at(base_url: str) -> dict[str, Any]:
    """The settings of a host whose models are served at this address, in the test's own state directory."""
    return {
        "base_url": base_url,
        "api_key": "scripted",
        "state_dir": os.environ["RLM_STATE_DIR"],  # the fixture `state_dir` has set it
        "image": IMAGE,
    }


async def containers_of(state_folder: Path) -> list[str]:
    """The names of all containers, in whatever state, that processes with this state directory have."""
    state = open_state_dir(state_folder)
    engine = DockerEngine()
    try:
        return [container.name for container in await engine.owned(state.id)]
    finally:
        await engine.close()


@dataclass(slots=True)
class World:
    server: ScriptedServer
    orchestrator: Orchestrator
    config: Config
    records: list[Record] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.config.state_dir)

    async def ask(self, query: str = "What is it?", context: object = None, **changes: Any) -> RunResult:
        settings = Config.load({**_given(self.config), **changes}, environ={}, dotenv=None)
        # Each run's spans count from 1, so each has a list of its own to be checked by.
        records: list[Record] = []
        try:
            return await self.orchestrator.ask(query, context, settings=settings, sinks=[records.append, *self.sinks])
        finally:
            assert unended(records) == []
            self.records += records

    def events(self, kind: type[E]) -> list[E]:
        return [record.event for record in self.records if isinstance(record.event, kind)]

    def asked(self, model: str) -> int:
        """The API requests for this model, retries included."""
        return sum(request.model == model for request in self.server.requests)


def unended(records: Sequence[Record]) -> list[str]:
    """The `Started` events whose span has no `Ended`; a container that never came has neither."""
    ended = {record.span_id for record in records if type(record.event).__name__.endswith("Ended")}
    return [
        type(record.event).__name__
        for record in records
        if type(record.event).__name__.endswith("Started") and record.span_id not in ended
    ]


@asynccontextmanager
async def world(policies: Mapping[str, Policy], **settings: Any) -> AsyncIterator[World]:
    """`settings` are those of `Config`. The depth is read off the policies' names unless it is given."""
    depth = sum(name.startswith("depth-") for name in policies)
    async with ScriptedServer(policies) as server:
        given = {**at(server.base_url), "max_depth": depth, "models": models(depth), **settings}
        config = Config.load(given, environ={}, dotenv=None)
        async with open_orchestrator(config.host()) as orchestrator:
            yield World(server, orchestrator, config)
        assert server.in_flight == 0


def _given(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}
