"""`rlm` as a process of its own, and what engine and kernel say of it: waited for by events, not by a clock."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.sandbox.engine import STATE_LABEL
from orchestrator.sandbox.state_dir import open_state_dir
from tests.integration.e2e_world import IMAGE, models


def environment(base_url: str, max_depth: int) -> dict[str, str]:
    """This process's, with the state directory of the test's fixture, but for settings that could cost money."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RLM_", "OPENAI_"))}
    return {
        **kept,
        "RLM_STATE_DIR": os.environ["RLM_STATE_DIR"],
        "RLM_IMAGE": IMAGE,
        "RLM_MAX_DEPTH": str(max_depth),
        "RLM_MODELS": ",".join(models(max_depth)),
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "scripted",
    }


@contextmanager
def started(*arguments: str, environ: Mapping[str, str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command for the block; killed at its end if it still runs."""
    process = subprocess.Popen([sys.executable, "-m", "orchestrator.cli", *arguments], env=environ, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class EngineEvents:
    """What the engine says of the containers of one state directory, from the block's beginning."""

    _lines: Iterator[str]

    def until(self, action: str) -> str:
        """The name of the first container of which this is said from now on: create, start, destroy, ..."""
        for line in self._lines:
            said, _, name = line.strip().partition(" ")
            if said == action:
                return name
        raise AssertionError(f"the engine's events ended before any {action!r}")


@contextmanager
def engine_events(state_dir: Path) -> Iterator[EngineEvents]:
    command = ["docker", "events", "--since", str(int(time.time())), "--filter", "type=container"]
    command += ["--filter", f"label={STATE_LABEL}={open_state_dir(state_dir).id}"]
    command += ["--format", "{{.Action}} {{.Actor.Attributes.name}}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield EngineEvents(iter(process.stdout.readline, ""))
        finally:
            process.kill()


def reaper_of(pid: int) -> int:
    """The process that stands by to clean up after this one."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            is_reaper = b"orchestrator.sandbox.reaper" in (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if parent == pid and is_reaper:
            return int(entry.name)
    raise AssertionError(f"process {pid} has no reaper")


@contextmanager
def its_end(pid: int) -> Iterator[select.poll]:
    """Something to wait on for the end of a process that is not our child, pidfd_open(2)."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        yield poll
    finally:
        os.close(descriptor)
