"""Kills at random moments, and a count of what remains: `python -m tests.security.kill_campaign --kills 200`.

Each kill has an `rlm ask` of its own, two levels deep over a scripted model that never answers, and strikes the
orchestrator, the orchestrator with its reaper, the agent (process 1 of a container), or a worker. When all are done,
and the next start has cleaned up after the dead, nothing may be left.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orchestrator.sandbox.engine import STATE_LABEL
from orchestrator.sandbox.state_dir import StateDir, open_state_dir
from orchestrator.testing.scripted import Hang, Policy, ScriptedServerThread, always, constant
from orchestrator.testing.scripted.record import RequestLog
from tests.integration.e2e_command import environment, reaper_of

_LATEST_S = 4.0  # after its start: a kill may strike the start, a cell, a question, or a child's start
_THERE_S = 10.0
_REAPERS_S = 60.0
_CODE = "```repl\nFINAL(str(llm_batch([context + n for n in '12'])))\n```"


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left after all; every number should be 0."""

    containers: int
    processes: int
    directories: int
    owner_records: int
    temporary_files: int
    upstream_calls: int

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class Report:
    struck: Mapping[str, int]
    missed: int  # there was no such process yet, or any more: the orchestrator was killed instead
    hung: int  # an orchestrator that did not end within 60 s of its SIGINT
    remains: Remains

    def __str__(self) -> str:
        kills = ", ".join(f"{victim} {count}" for victim, count in sorted(self.struck.items()))
        left = ", ".join(f"{name.replace('_', ' ')} {getattr(self.remains, name)}" for name in Remains.__slots__)
        total = sum(self.struck.values())
        return f"{total} kills ({kills}; {self.missed} by substitution), hung {self.hung}; left: {left}"


class Campaign:
    """Shots at commands that share one state directory."""

    def __init__(self, state: StateDir, environ: Mapping[str, str], seed: int) -> None:
        self._state = state
        self._environ = dict(environ)
        self._seed = seed
        self._lock = threading.Lock()
        self.struck: Counter[str] = Counter()
        self.missed = self.hung = 0
        self.pids: set[int] = set()
        self.containers: set[str] = set()

    def shot(self, number: int) -> None:
        chance = random.Random(self._seed + number)
        victim = chance.choice(["orchestrator", "orchestrator and reaper", "agent", "worker"])
        command = [sys.executable, "-m", "orchestrator.cli", "ask", "Why?", "-q"]
        before = _containers(self._state)
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=self._environ, stdout=quiet, stderr=quiet, start_new_session=True)
        if victim in ("agent", "worker"):
            self._until_there(before)
        try:
            process.wait(chance.uniform(0, _LATEST_S))
        except subprocess.TimeoutExpired:
            pass  # the moment has come
        reaper = _found(lambda: reaper_of(process.pid))
        with self._lock:
            self.pids |= {process.pid} | ({reaper} if reaper else set())
        seen = _containers(self._state)
        with self._lock:
            self.containers |= seen
        target = self._inside(victim, seen - before, chance)
        if victim in ("agent", "worker") and target is None:
            victim, self.missed = "orchestrator", self.missed + 1
        if victim == "orchestrator and reaper" and reaper:
            _kill(reaper)
        if victim in ("agent", "worker") and target is not None:
            _kill(target)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                self.hung += 1
        _kill(process.pid)
        process.wait()
        with self._lock:
            self.struck[victim] += 1

    def _until_there(self, before: set[str]) -> None:
        until = time.monotonic() + _THERE_S
        while not _containers(self._state) - before and time.monotonic() < until:
            time.sleep(0.1)

    def _inside(self, victim: str, fresh: set[str], chance: random.Random) -> int | None:
        if victim not in ("agent", "worker") or not fresh:
            return None
        one = chance.choice(sorted(fresh))
        agent = _found(lambda: int(_docker("inspect", "--format", "{{.State.Pid}}", one) or 0))
        if not agent or victim == "agent":
            return agent or None
        return next(iter(_children(agent)), None)


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdecimal() else 0
        except OSError:
            continue  # it has ended
        if parent == pid:
            found.append(int(entry.name))
    return found


def run(kills: int, state_path: Path, *, at_a_time: int = 3, seed: int = 0) -> Report:
    """Raises nothing for what it finds: the report says it."""
    policy: Policy = constant(_CODE)
    state = open_state_dir(state_path)
    temporary = set(os.listdir("/tmp"))
    with ScriptedServerThread({"depth-0": policy, "depth-1": policy, "leaf": always(Hang())}) as server:
        os.environ["RLM_STATE_DIR"] = str(state_path)
        environ = environment(server.base_url, 2)
        environ["RLM_IMAGE"] = os.environ.get("RLM_IMAGE", environ["RLM_IMAGE"])
        campaign = Campaign(state, environ, seed)
        with ThreadPoolExecutor(at_a_time) as pool:
            list(pool.map(campaign.shot, range(kills)))
        until = time.monotonic() + _REAPERS_S
        while any(_alive(pid) for pid in campaign.pids) and time.monotonic() < until:
            time.sleep(0.5)
        # The next start cleans up after those whose reaper was killed too.
        last = [sys.executable, "-m", "orchestrator.cli", "exec", "-"]
        subprocess.run(last, env=environ, input=b"1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        calls: list[int] = []

        def none_in_flight(log: RequestLog) -> bool:
            calls.append(log.in_flight)
            return log.in_flight == 0

        try:
            server.wait_for(none_in_flight, timeout_s=10)
        except TimeoutError:
            pass  # counted below
        remains = Remains(
            containers=len(_containers(state)),
            processes=sum(_alive(pid) for pid in campaign.pids) + _members(campaign.containers),
            directories=len(state.sandbox_names()),
            owner_records=len(os.listdir(state.owners)),
            temporary_files=sum("rlm" in name for name in set(os.listdir("/tmp")) - temporary),
            upstream_calls=calls[-1],
        )
    return Report(dict(campaign.struck), campaign.missed, campaign.hung, remains)


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _containers(state: StateDir) -> set[str]:
    return set(_docker("ps", "-aq", "--no-trunc", "--filter", f"label={STATE_LABEL}={state.id}").split())


def _members(containers: set[str]) -> int:
    """Processes that are in the groups of these containers."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                groups = (entry / "cgroup").read_text()
            except OSError:
                continue  # it has ended
            count += any(container in groups for container in containers)
    return count


def _found(look: Callable[[], int]) -> int:
    try:
        return look()
    except (AssertionError, OSError, ValueError):
        return 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--at-a-time", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    path = Path(f"/var/tmp/rlm-kills-{secrets.token_hex(3)}")
    print(f"seed {options.seed}", flush=True)
    try:
        report = run(options.kills, path, at_a_time=options.at_a_time, seed=options.seed)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    print(report)
    return 1 if report.remains.total or report.hung else 0


if __name__ == "__main__":
    sys.exit(main())
