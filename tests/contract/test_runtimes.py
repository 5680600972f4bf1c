"""Which runtime a run may choose, and what is done before it is used."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.errors import InvalidInput, SandboxUnavailable
from orchestrator.run_session import RunSession
from orchestrator.runtimes import Runtimes
from orchestrator.sandbox import self_check
from orchestrator.sandbox.engine import EngineInfo
from orchestrator.sandbox.factory import DockerSandboxes, SandboxesOfRuntime
from orchestrator.sandbox.self_check import Promising
from orchestrator.sandbox.settings import SandboxSettings
from tests.unit.sandbox_doubles import FakeEngine

INFO = EngineInfo("29", "1.52", "2", ("kata", "runc", "runsc"), "runc", (), "", {}, {"runsc": ("--network=none",)})


class KnowingEngine(FakeEngine):
    async def info(self) -> EngineInfo:
        return INFO


@asynccontextmanager
async def runtimes(state_dir: Path, usual: str | None = None) -> AsyncIterator[tuple[Runtimes, FakeEngine]]:
    engine = KnowingEngine()
    settings = SandboxSettings(state_dir, runtime=usual, pool_max=0)
    async with DockerSandboxes.start(settings, engine=engine) as sandboxes:
        yield Runtimes(usual, sandboxes, sandboxes.of), engine


@pytest.fixture
def state_dir() -> Iterator[Path]:
    path = Path(f"/var/tmp/rlm-t-{secrets.token_hex(4)}")  # short enough for a socket
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes that were attacked; each has a weakness."""
    seen: list[str] = []

    async def require_safe(sandboxes: Promising, *, allow_weaker: bool = False) -> tuple[str, ...]:
        assert isinstance(sandboxes, SandboxesOfRuntime)
        seen.append(sandboxes.policy.runtime.value)
        return ("K7 x",)

    monkeypatch.setattr(self_check, "require_safe", require_safe)
    return seen


async def test_each_runtime_has_its_own_containers_and_all_share_the_room(state_dir: Path) -> None:
    async with runtimes(state_dir) as (choice, engine):
        usual, chosen = await choice.sandboxes(None), await choice.sandboxes("runsc")
        async with usual.open(None, None), chosen.open(None, None):
            assert sorted(spec.policy.runtime.value for spec in engine.specs.values()) == ["engine default", "runsc"]
            assert isinstance(usual, DockerSandboxes)
            assert usual.in_use == 2


async def test_one_that_the_engine_does_not_know_is_refused_and_nothing_is_started(state_dir: Path) -> None:
    async with runtimes(state_dir) as (choice, engine):
        with pytest.raises(SandboxUnavailable, match=r"knows no runtime 'runsk'.*kata, runc, runsc"):
            await choice.sandboxes("runsk")
        assert engine.started == 0


async def test_a_service_checks_one_before_its_first_use_and_tells_its_weaknesses_by_name(
    state_dir: Path, checked: list[str]
) -> None:
    async with runtimes(state_dir, "runc") as (choice, _):
        await choice.check(allow_weaker=False)
        assert list(choice.weaknesses) == ["K7 x"]
        for _ in range(2):
            await choice.sandboxes("runsc")
            await choice.sandboxes("runc")
        assert checked == ["runc", "runsc"]
        assert list(choice.weaknesses) == ["K7 x", "runsc: K7 x"]


async def test_who_calls_a_service_does_not_choose_less_than_its_operator(state_dir: Path, checked: list[str]) -> None:
    async with runtimes(state_dir, "runsc") as (choice, _):
        await choice.check(allow_weaker=True)
        for lesser in ("runc", "kata"):
            with pytest.raises(InvalidInput, match="gVisor"):
                choice.check_choice(lesser)
            with pytest.raises(InvalidInput, match="gVisor"):
                await choice.sandboxes(lesser)


async def test_a_session_keeps_the_runtime_of_its_first_run(state_dir: Path) -> None:
    async with runtimes(state_dir) as (choice, engine):
        usual, chosen = await choice.sandboxes(None), await choice.sandboxes("runsc")
        session = RunSession(usual, 0)
        session.use(chosen, "runsc")
        async with session.open(None, None):
            [spec] = engine.specs.values()
            assert spec.policy.runtime.value == "runsc"
        session.use(usual, None)  # no wish: it goes on where it was
        session.use(chosen, "runsc")
        with pytest.raises(InvalidInput, match="within a session"):
            session.use(usual, "runc")
        await session.close()
