"""Both desks over fakes: an orchestrator with a policy for a model and cells by `exec`, a store, a clock to turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.budget import Budget
from orchestrator.build import Orchestrator
from orchestrator.config import Config, RunSettings
from orchestrator.events import Record
from orchestrator.hosting.clock import Alarm
from orchestrator.hosting.orders import RunOrder
from orchestrator.hosting.premises import SinksOf
from orchestrator.hosting.principals import Principal, Quotas
from orchestrator.hosting.run_desk import RunDesk, no_sinks
from orchestrator.hosting.sandbox_desk import SandboxDesk
from orchestrator.hosting.settings import HostingSettings
from orchestrator.llm.metered import Metered
from orchestrator.sandbox.context_store import FileContextStore
from orchestrator.seams import ChatModel
from orchestrator.store.database import Store
from orchestrator.testing.fake_model import FakeChatModel, Policy
from orchestrator.testing.fake_sandbox import FakeSandboxes
from orchestrator.values import Usage
from orchestrator.views import Missed, RunState, RunView

ALICE = Principal("alice")
BOB = Principal("bob")
ADMIN = Principal("admin", admin=True)
USD_A_TOKEN = 0.001


@dataclass
class _Set:
    at: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class TurnedClock:
    """Time that passes only when it is told to."""

    time: float = 1000.0
    alarms: list[_Set] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Alarm:
        self.alarms.append(_Set(self.time + delay_s, callback))
        return self.alarms[-1]

    def advance(self, seconds: float) -> None:
        self.time += seconds
        due = [alarm for alarm in self.alarms if alarm.at <= self.time]
        self.alarms = [alarm for alarm in self.alarms if alarm.at > self.time]
        for alarm in due:
            if not alarm.cancelled:
                alarm.callback()


class FakeOrchestrator(Orchestrator):
    """The real one, with a model and sandboxes in its hands."""

    def __init__(self, config: Config, chat: FakeChatModel, sandboxes: FakeSandboxes, folder: Path) -> None:
        super().__init__(config, sandboxes, FileContextStore(folder), (), AsyncExitStack())
        self.chat = chat

    async def _chat(self, settings: RunSettings, depth: int, budget: Budget) -> ChatModel:
        return Metered(self.chat, budget, lambda usage: usage.total_tokens * USD_A_TOKEN)


@dataclass
class House:
    runs: RunDesk
    sandboxes: SandboxDesk
    store: Store
    chat: FakeChatModel
    fakes: FakeSandboxes
    clock: TurnedClock
    folder: Path

    async def start(self, query: str = "What is it?", **order: Any) -> RunView:
        return await self.runs.start(RunOrder(**{"principal": ALICE, "query": query, **order}))

    async def ended(self, run: RunView) -> RunView:
        """The run as it is once it is over."""
        async for _ in self.runs.watch(run.run_id, principal=ADMIN):
            pass
        view = await self.runs.get(run.run_id, principal=ADMIN)
        assert view.state is not RunState.RUNNING
        return view

    async def ask(self, query: str = "What is it?", **order: Any) -> RunView:
        return await self.ended(await self.start(query, **order))

    async def seen(self, run: RunView, after_seq: int = 0, **how: Any) -> list[Record | Missed]:
        return [item async for item in self.runs.watch(run.run_id, after_seq, principal=ADMIN, **how)]

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "contexts").iterdir())


def config(**settings: Any) -> Config:
    return Config.load({"capacity": 6, "model": "fake", **settings}, environ={}, dotenv=None)


@asynccontextmanager
async def house(
    folder: Path,
    policy: Policy,
    *,
    settings: HostingSettings | None = None,
    sinks_of: SinksOf = no_sinks,
    **config_settings: Any,
) -> AsyncIterator[House]:
    """Nothing may be left after it: no sandbox, no context of a run, no task, no request in flight."""
    before = asyncio.all_tasks()
    chat, fakes, clock = FakeChatModel(policy), FakeSandboxes(), TurnedClock()
    orchestrator = FakeOrchestrator(config(**config_settings), chat, fakes, folder / "contexts")
    with Store.open(folder / "store.db", clock=clock.now) as store:
        opened = settings or HostingSettings(max_depth=2)
        opening = RunDesk.open(orchestrator, store, opened, clock=clock, sinks_of=sinks_of)
        async with opening as runs, SandboxDesk.open(runs) as sandboxes:
            made = House(runs, sandboxes, store, chat, fakes, clock, folder)
            yield made
        assert fakes.open_now == 0
        assert chat.in_flight == 0
        assert made.files() == []
        assert asyncio.all_tasks() <= before
        assert all(alarm.cancelled for alarm in clock.alarms)


async def until(condition: Callable[[], bool]) -> None:
    """Waits, one turn of the loop after the other, for what other tasks bring about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is anything
            await asyncio.sleep(0)


def with_quotas(**quotas: Any) -> Principal:
    return Principal("alice", Quotas(**quotas))


__all__ = ["ADMIN", "ALICE", "BOB", "USD_A_TOKEN", "House", "TurnedClock", "Usage", "config", "house", "until"]
