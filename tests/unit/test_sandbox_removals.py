"""Sandboxes on their way out: who waits, who does not, and how many go at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest

from orchestrator.sandbox import removals
from orchestrator.sandbox.launcher import Launcher, LiveSandbox
from orchestrator.sandbox.removals import Removals

A_DAY = 86_400.0


@dataclass(frozen=True)
class Sandbox:
    name: str


class Removing:
    """A launcher whose removals end when they are let."""

    def __init__(self) -> None:
        self.hung_up: list[str] = []
        self.begun: list[str] = []
        self.gone: list[str] = []
        self.let = asyncio.Semaphore(0)
        self.broken = ""  # hanging up on this one fails

    async def hang_up(self, sandbox: Sandbox) -> None:
        self.hung_up.append(sandbox.name)
        if sandbox.name == self.broken:
            raise OSError("told to fail")

    async def remove(self, sandbox: Sandbox) -> None:
        self.begun.append(sandbox.name)
        await self.let.acquire()
        self.gone.append(sandbox.name)


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "FEW_AT_A_TIME", 1)


def removals_of(launcher: Removing, delay_s: float, backlog: int) -> tuple[Removals, Callable[..., None]]:
    those = Removals(cast(Launcher, launcher), delay_s, backlog)
    return those, lambda name, at_rest=False: those.add(cast(LiveSandbox, Sandbox(name)), at_rest=at_rest)


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_few_go_one_at_a_time_and_none_keeps_its_guest_while_it_waits() -> None:
    launcher = Removing()
    those, add = removals_of(launcher, A_DAY, 4)
    for name in "abc":
        add(name)
    await turns()
    assert (launcher.hung_up, launcher.begun) == (["a", "b", "c"], ["a"])
    launcher.let.release()
    await turns()
    assert (launcher.begun, launcher.gone) == (["a", "b"], ["a"])
    launcher.let.release()
    launcher.let.release()
    await those.close()
    assert launcher.gone == ["a", "b", "c"]


async def test_one_at_rest_waits_and_with_many_nobody_does() -> None:
    launcher = Removing()
    those, add = removals_of(launcher, A_DAY, 3)
    for name in "abc":
        add(name, at_rest=True)
    await turns()
    assert launcher.hung_up == []
    add("d", at_rest=True)
    await turns()
    assert sorted(launcher.hung_up) == ["a", "b", "c", "d"]
    assert len(launcher.begun) == removals.MOST_AT_A_TIME
    for _ in "abcd":
        launcher.let.release()
    await turns()
    assert sorted(launcher.gone) == ["a", "b", "c", "d"]
    add("e", at_rest=True)  # calm again
    await turns()
    assert "e" not in launcher.hung_up
    launcher.let.release()
    await those.close()
    assert launcher.gone[-1] == "e"


async def test_one_that_cannot_be_hung_up_on_is_removed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    launcher = Removing()
    launcher.broken = "a"
    those, add = removals_of(launcher, 0.0, 4)
    add("a", at_rest=True)
    launcher.let.release()
    await those.close()
    assert launcher.gone == ["a"]


async def test_one_that_is_stuck_stands_before_a_few_and_not_before_many() -> None:
    launcher = Removing()
    those, add = removals_of(launcher, A_DAY, 3)
    for name in "abcde":  # nobody lets them go
        add(name)
    await turns()
    assert launcher.begun == ["a", "b", "c", "d"]
    for _ in "abcde":
        launcher.let.release()
    await those.close()
    assert len(launcher.gone) == 5
