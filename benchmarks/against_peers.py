"""The same cell in others' sandboxes, each used as its documents say, in the same run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peers.probe import ASK, ASK_ONCE, CELL, WARM_UP
from benchmarks.registry import Row, benchmark, quick
from benchmarks.setting import at_once, orchestrator_with, pool_is_full, says, timed

HERE = Path(__file__).parent / "peers"
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".build" / "peers"
PYTHON = ENVIRONMENT / "bin" / "python"
NAME = "rlm-bench-peers"  # of the image and of the network
ROUNDS = 2
CELLS = 20  # in each round


class NotHere(Exception):
    """A peer that this machine cannot run; the text says why."""


@benchmark("peers", "The same cell elsewhere")
async def peers() -> Sequence[Row]:
    """To start a sandbox, to run `print(1 + 1)` in it, and to ask `llm_query` where a peer has it, with a model that
    answers at once: one question after the other in the same cell, which prints their times at its end, and one alone
    in each cell (rlms_docker starts a Python for each cell, and with it the client that asks). They take turns, in
    rounds. Held against ours, a start against ours from the pool (ours cold stands beside it; no peer was given a
    pool). Ten cells and ten questions come before those that are timed, for all alike: CPython specializes code that
    has run eight times. Versions: rlms 0.1.3, jupyter_client 8.10.0 with ipykernel 7.4.0, llm-sandbox 0.3.46,
    smolagents 1.26.0, dspy 3.4.1. Everything that a peer would install at its start is in its image already, which is
    in its favor. rlms_local is LocalREPL, which runs code in the caller's own process: it has no isolation, and is what
    a cell costs without any. rlms_docker is DockerREPL, whose `docker run` is given a network by name, since it needs a
    default bridge that not every engine has. jupyter_local is a kernel without a container, over jupyter_client.
    llm_sandbox is a session on its Docker backend, without its set-up step and without a network. smolagents_docker is
    DockerExecutor: a Jupyter gateway in a container. dspy_deno is PythonInterpreter: Python compiled to WebAssembly,
    without native libraries, in Deno; its modules are in Deno's cache already, and one of them, on a host of its own,
    is replaced by ten lines that do the same."""
    ours: dict[str, list[float]] = {"cold": [], "pool": [], "cell": [], "question": [], "only question": []}
    theirs: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    models = {"model": says("")}
    with _peers(failed) as names:
        async with (
            orchestrator_with(models, pool_max=0) as cold,
            orchestrator_with(models, pool_min=1, pool_max=1) as pooled,
        ):
            for _ in range(1 if quick() else ROUNDS):
                await pool_is_full(pooled, 1)
                for kind, orchestrator in (("pool", pooled), ("cold", cold)):
                    began = time.perf_counter()
                    async with orchestrator.sandbox(answer=at_once) as sandbox:
                        ours[kind].append(time.perf_counter() - began)
                        for _ in range(1 + WARM_UP):
                            await sandbox.run(CELL)
                        ours["cell"] += [await timed(lambda: sandbox.run(CELL)) for _ in range(CELLS)]
                        asked = (await sandbox.run(ASK)).stdout.text.split()
                        ours["question"] += [float(line) for line in asked][WARM_UP:]
                        alone = [(await sandbox.run(ASK_ONCE)).stdout.text for _ in range(WARM_UP + CELLS)]
                        ours["only question"] += [float(text) for text in alone][WARM_UP:]
                for name in [name for name in names if name not in failed]:
                    try:
                        found = await asyncio.to_thread(_probe, name)
                    except NotHere as error:
                        failed[name] = str(error)
                        continue
                    for what, seconds in found.items():
                        theirs.setdefault(name, {}).setdefault(what, []).extend(seconds)
    return _rows(ours, theirs, failed)


def _rows(
    ours: dict[str, list[float]], theirs: dict[str, dict[str, list[float]]], failed: dict[str, str]
) -> Sequence[Row]:
    starts = [
        Row("start: ours, from the pool", _ms(ours["pool"]), "ms"),
        Row("start: ours, cold", _ms(ours["cold"]), "ms"),
    ]
    cells = [Row("cell: ours", _ms(ours["cell"]), "ms")]
    questions = [Row("question: ours", _ms(ours["question"]), "ms")]
    alone = [Row("a cell's only question: ours", _ms(ours["only question"]), "ms")]
    for name, found in theirs.items():
        starts.append(Row(f"start: {name}", _ms(found["start"]), "ms", starts[0].median))
        cells.append(Row(f"cell: {name}", _ms(found["cell"]), "ms", cells[0].median))
        if found["question"]:
            questions.append(Row(f"question: {name}", _ms(found["question"]), "ms", questions[0].median))
            alone.append(Row(f"a cell's only question: {name}", _ms(found["only question"]), "ms", alone[0].median))
    return [*starts, *cells, *questions, *alone, *(Row(f"{name}: {why}", (), "") for name, why in failed.items())]


def _ms(seconds: list[float]) -> tuple[float, ...]:
    return tuple(1e3 * one for one in seconds)


@contextmanager
def _peers(failed: dict[str, str]) -> Iterator[list[str]]:
    """The names of those to try; their environment, image and network are made where they are missing."""
    names = ["rlms_local", "rlms_docker", "jupyter_local", "llm_sandbox", "smolagents_docker", "dspy_deno"]
    try:
        _make_environment()
        _make_image()
        _run(["docker", "network", "create", NAME])
    except NotHere as error:
        failed.update(dict.fromkeys(names, str(error)))
        yield []
        return
    try:
        _probe("dspy_deno")  # which fills Deno's cache
    except NotHere as error:
        failed["dspy_deno"] = str(error)
    try:
        yield names
    finally:
        subprocess.run(["docker", "network", "rm", NAME], capture_output=True, check=False)


def _make_environment() -> None:
    stamp = ENVIRONMENT / ".made-of"
    wanted = (HERE / "requirements.txt").read_text("utf-8")
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return
    uv = _uv()
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)])
    _run([uv, "pip", "install", "--quiet", "--python", str(PYTHON), "-r", str(HERE / "requirements.txt")])
    stamp.write_text(wanted, "utf-8")


def _make_image() -> None:
    if subprocess.run(["docker", "image", "inspect", NAME], capture_output=True, check=False).returncode == 0:
        return
    base = _run(["bash", str(ROOT / "sandbox_image" / "base.sh")]).strip()
    with TemporaryDirectory() as folder:
        shutil.copy(HERE / "Dockerfile", folder)
        requirements = str(HERE / "requirements-image.txt")
        target = ["--python-version", "3.11", "--target", f"{folder}/site"]
        _run([_uv(), "pip", "install", "--quiet", "--python", sys.executable, *target, "-r", requirements])
        _run(["docker", "build", "--quiet", "--network", "none", "--build-arg", f"BASE={base}", "-t", NAME, folder])


def _uv() -> str:
    return shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"


def _probe(name: str) -> dict[str, list[float]]:
    printed = _run([str(PYTHON), str(HERE / "probe.py"), name, str(CELLS)])
    found: dict[str, list[float]] = json.loads(printed.splitlines()[-1])
    return found


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd="/")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotHere(f"could not be run here ({last[:200]})") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(f"could not be run here ({type(error).__name__})") from error
    return done.stdout
