"""The reaper, on an engine whose containers turn up late."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox import reaper
from orchestrator.sandbox.engine import OwnedContainer
from orchestrator.sandbox.reaper import Charge, reap, standing_by
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


async def test_it_is_sent_home_only_by_who_has_seen_that_nothing_is_left(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes] = []
    monkeypatch.setattr(reaper, "_started", lambda _: Listener(said))
    async with standing_by(state, "a") as dismissed:
        await dismissed.dismiss()
    with pytest.raises(asyncio.CancelledError):
        async with standing_by(state, "b"):
            raise asyncio.CancelledError
    assert said == [b"goodbye\n", b""]


class Listener:
    """A process in place of the reaper's, that keeps what it was told before its pipe ended."""

    def __init__(self, said: list[bytes]) -> None:
        self._said = said
        self.stdin = io.BytesIO()
        self.stdin.close = self._close  # type: ignore[method-assign]
        self.stdin.fileno = lambda: -1  # type: ignore[method-assign]

    def _close(self) -> None:
        self._said.append(self.stdin.getvalue())

    def wait(self) -> int:
        return 0


def test_a_record_that_a_kill_left_without_its_name_is_removed_and_one_in_the_making_is_not(state: StateDir) -> None:
    left, in_the_making = state.owners / ".aaaaaaaa", state.owners / ".bbbbbbbb"
    left.touch()
    with in_the_making.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state.remove_partial_records()
        assert os.listdir(state.owners) == [in_the_making.name]


def test_an_owner_whose_record_is_taken_away_in_the_making_makes_itself_another(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = fcntl.flock
    meddled: list[str] = []

    def tidied_before(descriptor: int, how: int) -> None:
        if not meddled and how & fcntl.LOCK_EX:
            meddled.extend(os.listdir(state.owners))
            state.remove_partial_records()
        honest(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", tidied_before)
    with owner_record(state) as owner:
        assert meddled
        assert os.listdir(state.owners) == [owner]


def test_an_id_that_a_kill_left_half_made_goes_with_the_next_start(state: StateDir) -> None:
    (state.path / ".id-0123").write_text("x")
    assert open_state_dir(state.path).id == state.id
    assert not list(state.path.glob(".id-*"))


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
