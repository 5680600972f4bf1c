"""Kills at random moments, and a count of what remains: `python -m tests.security.kill_campaign --kills 200`.

Each kill has an `rlm ask` of its own, two levels deep over a scripted model that never answers, on runc or gVisor, and
strikes the orchestrator, the orchestrator with its reaper, the agent (process 1 of a container, or gVisor's process), a
worker, the model's server, the engine, or the engine with its containerd: one that the campaign has for itself, where
it is root. When all are done, and the next start has cleaned up after the dead, nothing may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.sandbox.state_dir import StateDir, open_state_dir
from orchestrator.testing.scripted import Hang, Policy, ScriptedServerThread, always, constant
from orchestrator.testing.scripted.record import RequestLog
from tests.integration.e2e_command import environment, reaper_of
from tests.integration.e2e_world import IMAGE
from tests.security.private_engine import PrivateEngine, can_be_had, private_engine
from tests.security.remains import (
    Remains,
    alive,
    born,
    children_of,
    containers_of_state,
    docker,
    files_below,
    processes_around,
    strays_in,
)

_LATEST_S = 4.0  # after its start: a kill may strike the start, a cell, a question, or a child's start
_THERE_S = 10.0
_ASKED_S = 60.0
_REAPERS_S = 150.0  # one that finds no engine goes on trying for two minutes
_ENGINE_DOWN_S = 3.0
MODEL_SERVER = "model server"
VICTIMS = ("orchestrator", "orchestrator and reaper", "agent", "worker", MODEL_SERVER)
ENGINES = ("engine", "engine and containerd")
_CODE = "```repl\nFINAL(str(llm_batch([context + n for n in '12'])))\n```"


@dataclass(frozen=True, slots=True)
class Report:
    struck: Mapping[str, int]
    missed: int  # there was no such process yet, or any more: the orchestrator was killed instead
    late: int  # the command had ended by itself when it was struck
    asked: int  # upstream calls that never were answered
    hung: int  # an orchestrator that did not end within 60 s of its SIGINT
    remains: Remains
    own_engine: bool

    def __str__(self) -> str:
        kills = ", ".join(f"{victim} {count}" for victim, count in sorted(self.struck.items()))
        total = sum(self.struck.values())
        if not self.own_engine:
            kills += "; no engine of its own, so none was killed"
        beside = f"{self.missed} by substitution, {self.late} late; {self.asked} calls upstream"
        return f"{total} kills ({kills}; {beside}), hung {self.hung}; left: {self.remains}"


class Campaign:
    """Shots at commands that share one state directory and one engine."""

    def __init__(
        self,
        state: StateDir,
        environ: Mapping[str, str],
        seed: int,
        engine: PrivateEngine | None,
        context: Path,
        asked: Callable[[str], int],
    ) -> None:
        """`asked` counts the questions that came to the model with this key."""
        self._state = state
        self._environ = dict(environ)
        self._seed = seed
        self._engine = engine
        self._context = context
        self._asked = asked
        self._lock = threading.Lock()
        self.struck: Counter[str] = Counter()
        self.missed = self.hung = self.late = 0
        self.processes: dict[int, str] = {}  # by id, when each was born: ids come again
        self.containers: set[str] = set()

    @property
    def victims(self) -> list[str]:
        return [*VICTIMS, *(ENGINES if self._engine is not None else ())]

    def living(self) -> list[str]:
        """Orchestrators and reapers that have not ended."""
        there = [pid for pid, when in self.processes.items() if when and alive(pid) and born(pid) == when]
        return [f"process {pid}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}" for pid in there]

    def victim(self, number: int) -> str:
        return self.victims[(self._seed + number) % len(self.victims)]

    def shot(self, number: int) -> None:
        chance = random.Random(self._seed + number)
        # In turn, so that a short campaign has them all; the moment is left to chance.
        victim = self.victim(number)
        with ExitStack() as stack:
            environ = {**self._environ, "OPENAI_API_KEY": f"key-{number}"}
            if self._engine is not None:
                environ["RLM_RUNTIME"] = chance.choice(self._engine.runtimes)
            model = stack.enter_context(_model_server()) if victim == MODEL_SERVER else None
            if model is not None:
                environ["OPENAI_BASE_URL"] = model.url
            # Left to chance alone, a short campaign on a slow machine may have no command that came to a question.
            first = victim == "orchestrator" and number < len(self.victims)
            self._strike(victim, chance, environ, model, once_it_asks=first)

    def _strike(
        self,
        victim: str,
        chance: random.Random,
        environ: Mapping[str, str],
        model: _Model | None,
        *,
        once_it_asks: bool,
    ) -> None:
        # With a context: without one its code fails, and the command ends before anything strikes it.
        command = [sys.executable, "-m", "orchestrator.cli", "ask", "Why?", str(self._context), "-q"]
        before = containers_of_state(self._state)
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environ, stdout=quiet, stderr=quiet, start_new_session=True)
        if victim in ("agent", "worker"):
            self._until(lambda: containers_of_state(self._state) - before, _THERE_S)
        if once_it_asks:
            self._until(lambda: self._asked(environ["OPENAI_API_KEY"]) or process.poll() is not None, _ASKED_S)
        try:
            process.wait(chance.uniform(0, _LATEST_S))
        except subprocess.TimeoutExpired:
            pass  # the moment has come
        reaper = _found(lambda: reaper_of(process.pid))
        seen = containers_of_state(self._state)
        with self._lock:
            self.processes |= {pid: born(pid) for pid in (process.pid, reaper) if pid}
            self.containers |= seen
        target = self._inside(victim, seen - before, chance)
        if victim in ("agent", "worker") and target is None:
            victim, self.missed = "orchestrator", self.missed + 1
        if victim == "orchestrator and reaper" and reaper:
            _kill(reaper)
        with self._lock:
            self.late += process.poll() is not None
        if victim in ENGINES and self._engine is not None:
            self._engine.kill(with_containerd=victim == ENGINES[1], down_s=chance.uniform(0, _ENGINE_DOWN_S))
        if model is not None:
            model.process.kill()
        if target is not None:
            _kill(target)
        if not victim.startswith("orchestrator"):
            # It is still there, and told to go: it must be able to.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                self.hung += 1
        _kill(process.pid)
        process.wait()
        with self._lock:
            self.containers |= containers_of_state(self._state)
            self.struck[victim] += 1

    def _until(self, come: Callable[[], object], within_s: float) -> None:
        until = time.monotonic() + within_s
        while not come() and time.monotonic() < until:
            time.sleep(0.1)

    def _inside(self, victim: str, fresh: set[str], chance: random.Random) -> int | None:
        if victim not in ("agent", "worker") or not fresh:
            return None
        one = chance.choice(sorted(fresh))
        agent = _found(lambda: int(docker("inspect", "--format", "{{.State.Pid}}", one) or 0))
        if not agent or victim == "agent":
            return agent or None
        return next(iter(children_of(agent)), None)


@dataclass(frozen=True, slots=True)
class _Model:
    process: subprocess.Popen[str]
    url: str


@contextmanager
def _model_server() -> Iterator[_Model]:
    """A model's side in a process of its own, which never answers a leaf."""
    leaf = {"text": "never", "faults": "latency=600"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as script:
        json.dump({"models": {"depth-0": {"text": _CODE}, "depth-1": {"text": _CODE}, "leaf": leaf}}, script)
        script.flush()
        command = [sys.executable, "-m", "orchestrator.testing.scripted", "--script", script.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield _Model(process, f"{process.stdout.readline().strip()}/v1")
            finally:
                process.kill()


def run(kills: int, state_path: Path, *, at_a_time: int = 3, seed: int = 0) -> Report:
    """Raises nothing for what it finds: the report says it. With an engine of its own where one can be had."""
    image = os.environ.get("RLM_IMAGE", IMAGE)
    kept = {name: os.environ.get(name) for name in ("DOCKER_HOST", "RLM_STATE_DIR", "TMPDIR")}
    with ExitStack() as stack:
        engine = stack.enter_context(private_engine(image)) if can_be_had() else None
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="rlm-kills-"))
        if engine is not None:
            os.environ["DOCKER_HOST"] = engine.host
        os.environ |= {"RLM_STATE_DIR": str(state_path), "TMPDIR": temporary}
        try:
            return _run(kills, open_state_dir(state_path), image, Path(temporary), engine, at_a_time, seed)
        finally:
            for name, value in kept.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _run(
    kills: int, state: StateDir, image: str, temporary: Path, engine: PrivateEngine | None, at_a_time: int, seed: int
) -> Report:
    policy: Policy = constant(_CODE)
    with ScriptedServerThread({"depth-0": policy, "depth-1": policy, "leaf": always(Hang())}) as server:
        environ = {**environment(server.base_url, 2), "RLM_IMAGE": image}
        context = temporary / "context.txt"
        context.write_text("n")

        def asked(key: str = "") -> int:
            leaves = [request for request in server.requests if request.model == "leaf"]
            return sum(request.headers["authorization"].endswith(key) for request in leaves)

        campaign = Campaign(state, environ, seed, engine, context, asked)
        # Those at the engine come last: each of them strikes all commands that run, and would leave the others nothing.
        numbers = sorted(range(kills), key=lambda number: campaign.victim(number) in ENGINES)
        with ThreadPoolExecutor(at_a_time) as pool:
            list(pool.map(campaign.shot, numbers))
        until = time.monotonic() + _REAPERS_S
        while campaign.living() and time.monotonic() < until:
            time.sleep(0.5)
        # The next start cleans up after those whose reaper was killed too.
        last = [sys.executable, "-m", "orchestrator.cli", "exec", "-"]
        subprocess.run(last, env=environ, input=b"1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        questions = asked()
        calls: list[int] = []

        def none_in_flight(log: RequestLog) -> bool:
            calls.append(log.in_flight)
            return log.in_flight == 0

        try:
            server.wait_for(none_in_flight, timeout_s=10)
        except TimeoutError:
            pass  # counted below
        context.unlink()
        left = files_below(temporary)
        around = processes_around(campaign.containers)
        strays = strays_in(state)
        remains = Remains(
            containers=len(containers_of_state(state)),
            processes=len(living := campaign.living()),
            runtime_processes=len(around),
            directories=len(os.listdir(state.sandboxes)),
            owner_records=len(os.listdir(state.owners)),
            temporary_files=len(left),
            state_files=len(strays),
            upstream_calls=calls[-1],
            names=(*living, *around.values(), *left, *strays),
        )
    return Report(
        dict(campaign.struck), campaign.missed, campaign.late, questions, campaign.hung, remains, engine is not None
    )


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
