"""Removes what dead orchestrators have left: containers, directories, records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.engine import Engine
from orchestrator.sandbox.state_dir import StateDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What was found and removed, and what reapers wrote since somebody last looked."""

    containers: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.containers or self.directories or self.notes)

    def __str__(self) -> str:
        found = [f"container {name}" for name in self.containers]
        found += [f"directory {name}" for name in self.directories]
        lines = [f"removed what an earlier process left behind: {', '.join(found)}"] if found else []
        return "\n".join([*lines, *self.notes])


async def reclaim(engine: Engine, state: StateDir) -> Reclaimed:
    """Touches only what belongs to this state directory, and of that only what is of owners that are gone.

    Raises `SandboxUnavailable` when the engine cannot be asked. What cannot be removed now is left to the next time.
    """
    containers, kept = [], set()
    for container in await engine.owned(state.id):
        if not state.owner_is_dead(container.owner):
            continue
        try:
            await engine.destroy(container.name)
            containers.append(container.name)
        except SandboxUnavailable as error:
            kept.add(container.owner)
            logger.warning("the left-over container %s could not be removed: %s", container.name, error)
    directories, notes = await asyncio.to_thread(_tidy, state, kept)
    return Reclaimed(tuple(containers), directories, notes)


async def remove_owned(
    engine: Engine, state: StateDir, owner: str, spared: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Removes the containers of one owner, but for those to be spared; returns their names.

    `spared` is asked after the engine has been: of a container that was made meanwhile, it knows.

    Raises `SandboxUnavailable`.
    """
    names = [c.name for c in await engine.owned(state.id) if c.owner == owner and not spared(c.name)]
    for name in names:
        await engine.destroy(name)
    return names


def remove_owned_dirs(state: StateDir, owner: str) -> list[str]:
    names = [name for name in state.sandbox_names() if state.owner_of(name) == owner]
    for name in names:
        state.remove_sandbox_dir(name)
    return names


def _tidy(state: StateDir, kept: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    directories = []
    for name in state.sandbox_names():
        owner = state.owner_of(name)
        if owner not in kept and state.owner_is_dead(owner):
            state.remove_sandbox_dir(name)
            directories.append(name)
    for owner in state.dead_owners():
        if owner not in kept:
            state.forget_owner(owner)
    state.remove_partial_records()
    return tuple(directories), tuple(state.take_notes())
