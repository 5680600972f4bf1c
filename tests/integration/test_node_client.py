"""The client in Node.js, made from the protos alone, against a real server: what the protos promise to any language."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client.calls import Client
from orchestrator.testing.scripted import ChatRequest, Hang, Outcome, Reply, ScriptedServerThread, sequence
from orchestrator.views import RunState
from tests.integration.e2e_command import environment, started
from tests.integration.e2e_world import reply

pytestmark = pytest.mark.docker

_ROOT = Path(__file__).parents[2]
_EXAMPLE = _ROOT / "examples" / "node"
_ASKS_ONE = [reply("answer = llm_query('a')"), reply("FINAL(answer)")]


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The example's dependencies, installed once for all workers and later runs."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian, Ubuntu: apt-get install nodejs npm)")
    folder = _ROOT / ".build" / "node-client"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (_EXAMPLE / "package.json").read_text()
    stamp = folder / "node_modules" / ".installed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            (folder / "package.json").write_text(wanted)
            command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
            if done.returncode:
                pytest.skip(f"npm install failed: {done.stderr.strip()[-500:]}")
            stamp.write_text(wanted)
    return folder / "node_modules"


@pytest.fixture
def program(node_modules: Path, tmp_path: Path) -> list[str]:
    """The example as a command, beside its dependencies: Node looks for them next to the real file."""
    for path in _EXAMPLE.glob("*.mjs"):
        shutil.copy(path, tmp_path)
    (tmp_path / "node_modules").symlink_to(node_modules)
    return ["node", str(tmp_path / "main.mjs")]


def _node_environment() -> dict[str, str]:
    return {**os.environ, "RLM_PROTOS": str(_ROOT / "protos"), "RLM_SERVER": ""}


@contextmanager
def _node(program: list[str], *arguments: str, server: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*program, *arguments, "--server", f"unix:{server}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=_node_environment(), text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _served(base_url: str) -> Iterator[None]:
    with started("serve", "--drain-grace", "0", environ=environment(base_url, 1), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(line.startswith(b"Serving on") for line in process.stderr), "the server ended before it served"
        yield
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr.decode()


class _Line:
    """A Unix socket in front of another, whose connections can be cut."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.accepted = 0
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.path.unlink()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._target))
                self.accepted += 1
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


async def test_a_run_is_followed_over_a_lost_connection(program: list[str], state_dir: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    async def held(request: ChatRequest) -> Outcome:
        asked.set()
        await asyncio.to_thread(go_on.wait, 60)
        return Reply(request.last_user.upper())

    with ScriptedServerThread({"depth-0": sequence(_ASKS_ONE), "leaf": held}) as models, _served(models.base_url):
        line = _Line(state_dir / "line.sock", state_dir / "rlm.sock")
        try:
            with _node(program, "ask", "Which?", "--json", server=line.path) as process:
                assert process.stdout is not None
                seen: list[dict[str, Any]] = []
                for text in process.stdout:
                    seen.append(json.loads(text))
                    if seen[-1].get("event", {}).get("event") == "queryStarted":
                        break
                assert asked.wait(60)
                line.cut()
                go_on.set()
                # Not `communicate`, which knows nothing of what the lines above were read ahead of.
                rest = process.stdout.read()
                assert process.wait() == 0
            seen += [json.loads(text) for text in rest.splitlines()]
        finally:
            go_on.set()
            line.close()
        run = seen.pop()
        assert (run["state"], run["answer"]) == ("RUN_STATE_SUCCEEDED", "A")
        assert line.accepted >= 2, "the connection was never cut"
        async with Client(f"unix:{state_dir}/rlm.sock") as client:
            kept = [record.seq async for record in client.watch(run["runId"])]
        numbers = [int(record["seq"]) for record in seen]
        assert numbers == sorted(set(numbers)), "a record came twice, or out of order"
        assert set(kept) <= set(numbers), "a record was lost"
        assert seen[-1]["event"]["event"] == "runEnded"


async def test_started_from_node_watched_by_the_command_cancelled_from_python(
    program: list[str], state_dir: Path
) -> None:
    with (
        ScriptedServerThread({"depth-0": sequence(_ASKS_ONE), "leaf": lambda request: Hang()}) as models,
        _served(models.base_url),
        _node(program, "ask", "Which?", "--json", server=state_dir / "rlm.sock") as node,
    ):
        assert node.stdout is not None
        first = json.loads(node.stdout.readline())
        run_id = first["event"]["runStarted"]["runId"]
        environ = environment(models.base_url, 1)
        with started("watch", run_id, "--events", environ=environ, stdout=subprocess.PIPE) as watch:
            assert watch.stdout is not None
            watched: list[dict[str, Any]] = []
            for line in watch.stdout:
                watched.append(json.loads(line))
                if watched[-1]["event"]["type"] == "QueryStarted":
                    break
            async with Client(f"unix:{state_dir}/rlm.sock") as client:
                assert (await client.get(run_id)).state is RunState.RUNNING
                stopped = await client.cancel(run_id)
                assert stopped.state is RunState.CANCELLED
            rest, _ = await asyncio.to_thread(watch.communicate)
            watched += [json.loads(line) for line in rest.splitlines()]
            assert watch.returncode == 0
        stdout, _ = await asyncio.to_thread(node.communicate)
        assert node.returncode == 1
        seen = [first, *(json.loads(line) for line in stdout.splitlines())]
    # All three saw one run, to its end.
    assert (seen[-1]["event"]["event"], watched[-1]["event"]["type"]) == ("runEnded", "RunEnded")
    assert int(seen[-1]["seq"]) == watched[-1]["seq"] == stopped.last_seq


def test_output_of_a_cell_comes_while_it_runs(program: list[str], state_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text("import threading\nprint('before', flush=True)\nthreading.Event().wait()\n")
    (tmp_path / "wrong.py").write_text("import sys\nprint('told', file=sys.stderr)\nprint(6 * 7)\n1 / 0\n")
    with ScriptedServerThread({"leaf": lambda request: Reply("")}) as models, _served(models.base_url):
        with _node(program, "exec", str(tmp_path / "cell.py"), server=state_dir / "rlm.sock") as process:
            assert process.stdout is not None
            # The cell never ends by itself: what is read here has come while it runs.
            assert process.stdout.readline() == "before\n"
            process.send_signal(signal.SIGINT)
            process.communicate()
            assert process.returncode == 1
        with _node(program, "exec", str(tmp_path / "wrong.py"), server=state_dir / "rlm.sock") as process:
            stdout, stderr = process.communicate()
            assert (process.returncode, stdout) == (1, "42\n")
            assert stderr.startswith("told\n")
            assert "ZeroDivisionError" in stderr


def test_a_mistake_is_named(program: list[str], tmp_path: Path) -> None:
    with _node(program, "dance", server=tmp_path / "none.sock") as process:
        _, stderr = process.communicate()
        assert process.returncode == 2
        assert "usage:" in stderr
