"""The reaper, on an engine whose containers turn up late."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox import reaper
from orchestrator.sandbox.engine import OwnedContainer
from orchestrator.sandbox.reaper import Charge, reap
from orchestrator.sandbox.state_dir import StateDir, open_state_dir, owner_record
from tests.unit.sandbox_doubles import FakeEngine


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[StateDir]:
    monkeypatch.setattr(reaper, "_LOOK_FOR_S", 0.05)
    monkeypatch.setattr(reaper, "_LOOK_EVERY_S", 0.005)
    path = Path(f"/tmp/rlm-r-{os.getpid()}-{os.urandom(3).hex()}")
    yield open_state_dir(path)
    shutil.rmtree(path)


def dead_owner(state: StateDir) -> str:
    with owner_record(state) as owner:
        return owner


class LateEngine(FakeEngine):
    """Its first answers fail or are empty; then a create that was under way comes to light."""

    def __init__(self, owner: str, answers: list[str]) -> None:
        super().__init__()
        self._owner = owner
        self._answers = answers

    async def owned(self, state_id: str) -> list[OwnedContainer]:
        match self._answers.pop(0) if self._answers else "nothing":
            case "unreachable":
                raise SandboxUnavailable("no engine")
            case "created":
                self.strays["late"] = OwnedContainer("late", self._owner, False)
        return await super().owned(state_id)


@pytest.mark.parametrize(
    "answers", [["created"], ["nothing", "nothing", "created"], ["unreachable", "nothing", "created"]]
)
async def test_a_create_that_was_under_way_is_waited_out(state: StateDir, answers: list[str]) -> None:
    owner = dead_owner(state)
    state.make_sandbox_dir(f"{owner}-1")
    engine = LateEngine(owner, answers)
    await reap(engine, state, Charge(str(state.path), owner, 7))
    assert engine.strays == {}
    assert state.sandbox_names() == []
    assert state.take_notes() == ["process 7 was killed; its reaper removed 1 containers and 1 directories"]
    assert state.dead_owners() == []


async def test_others_are_left_alone_and_nothing_done_is_nothing_said(state: StateDir) -> None:
    owner, other = dead_owner(state), dead_owner(state)
    engine = FakeEngine()
    engine.strays["others"] = OwnedContainer("others", other, True)
    await reap(engine, state, Charge(str(state.path), owner, 7))
    assert list(engine.strays) == ["others"]
    assert state.take_notes() == []
    assert state.dead_owners() == [other]


async def test_an_engine_that_stays_away_is_told_and_the_record_kept(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "_GIVE_UP_S", 0.03)
    owner = dead_owner(state)
    engine = LateEngine(owner, ["unreachable"] * 1_000)
    await reap(engine, state, Charge(str(state.path), owner, 7))
    assert state.dead_owners() == [owner]
    [note] = state.take_notes()
    assert "could not be removed: no engine" in note
