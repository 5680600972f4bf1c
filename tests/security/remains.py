"""What may be left after a kill, and where it is looked for."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orchestrator.sandbox.engine import STATE_LABEL
from orchestrator.sandbox.state_dir import StateDir


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left after all; every number should be 0."""

    containers: int
    processes: int  # orchestrators and reapers
    runtime_processes: int  # of containers, in them or around them: runsc's and shims too
    directories: int
    owner_records: int
    temporary_files: int
    state_files: int
    upstream_calls: int
    names: tuple[str, ...] = ()  # of the files, and of the processes around containers

    def __str__(self) -> str:
        counts = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name)}" for name in _COUNTS)
        return "\n  ".join([counts, *self.names])

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in _COUNTS)


_COUNTS = tuple(name for name in Remains.__dataclass_fields__ if name != "names")


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def containers_of_state(state: StateDir) -> set[str]:
    return set(docker("ps", "-aq", "--no-trunc", "--filter", f"label={STATE_LABEL}={state.id}").split())


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdecimal() else 0
        except OSError:
            continue  # it has ended
        if parent == pid:
            found.append(int(entry.name))
    return found


def processes_around(containers: set[str]) -> dict[int, str]:
    """Processes in the groups of these containers, and those that name one: shims, runsc's sandboxes and gofers."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and alive(int(entry.name)):
            try:
                command = (entry / "cmdline").read_text("utf-8", "replace").replace("\0", " ")
                told = (entry / "cgroup").read_text() + command
            except OSError:
                continue  # it has ended
            if any(container in told for container in containers):
                found[int(entry.name)] = f"{entry.name}: {command}"
    return found


def born(pid: int) -> str:
    """When it started, in ticks: with its id, that is one process for good (proc(5), stat, field 22). "": it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def files_below(folder: Path) -> list[str]:
    return [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]


def strays_in(state: StateDir) -> list[str]:
    """What is in the state directory beside its id, and notes that nobody has been told of."""
    own = {str(state.path / "id")}
    counted = (f"{state.sandboxes}/", f"{state.owners}/")
    return [path for path in files_below(state.path) if path not in own and not path.startswith(counted)]
