"""Runs one peer, as its own documents say, and prints its figures as JSON. For the peers' own environment.

Usage: probe.py NAME CELLS

Each peer is a context manager that yields a function which runs code and returns what it printed, as text.
"""

# mypy: disable-error-code=import-not-found
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

IMAGE = NETWORK = "rlm-bench-peers"
CELL = "print(1 + 1)"
WARM_UP = 10  # cells: CPython specializes code that has run eight times (PEP 659)
# Printed at the end: what is printed may still be carried away while the next question is asked.
ASK = """
import time
took = []
for n in range(30):
    began = time.perf_counter()
    llm_query(str(n))
    took.append(time.perf_counter() - began)
print(*took)
"""
ASK_ONCE = """
import time
began = time.perf_counter()
llm_query("0")
print(time.perf_counter() - began)
"""
Run = Callable[[str], str]


@contextmanager
def rlms_local() -> Iterator[Run]:
    from rlm.environments.local_repl import LocalREPL

    with _lm_handler() as address, LocalREPL(lm_handler_address=address) as repl:
        yield lambda code: str(repl.execute_code(code).stdout)


@contextmanager
def rlms_docker() -> Iterator[Run]:
    from rlm.environments.docker_repl import DockerREPL

    with tempfile.TemporaryDirectory() as folder, _lm_handler() as address:
        os.environ["RLM_DOCKER_WORKSPACE_DIR"] = folder
        _docker_with_a_network(folder)
        repl = DockerREPL(image=IMAGE, lm_handler_address=address)
        try:
            yield lambda code: str(repl.execute_code(code).stdout)
        finally:
            repl.cleanup()


@contextmanager
def jupyter_local() -> Iterator[Run]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:

        def run(code: str) -> str:
            printed: list[str] = []

            def hook(message: dict[str, Any]) -> None:
                if message["msg_type"] == "stream":
                    printed.append(message["content"]["text"])

            client.execute_interactive(code, output_hook=hook, timeout=60)
            return "".join(printed)

        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@contextmanager
def llm_sandbox() -> Iterator[Run]:
    from llm_sandbox import SandboxSession

    # Without the set-up, which would install pip into the container from the internet.
    settings = {"keep_template": True, "skip_environment_setup": True, "runtime_configs": {"network_mode": "none"}}
    with SandboxSession(lang="python", image=IMAGE, **settings) as session:
        yield lambda code: str(session.run(code).stdout)


@contextmanager
def smolagents_docker() -> Iterator[Run]:
    from smolagents.monitoring import AgentLogger, LogLevel
    from smolagents.remote_executors import DockerExecutor

    # A network of its own, since its port must be reached.
    network = {"network": NETWORK}
    logger = AgentLogger(level=LogLevel.OFF)
    executor = DockerExecutor([], logger, image_name=IMAGE, build_new_image=False, container_run_kwargs=network)
    try:
        yield lambda code: str(executor.run_code_raise_errors(code).logs)
    finally:
        executor.cleanup()


@contextmanager
def dspy_deno() -> Iterator[Run]:
    from dspy.primitives.python_interpreter import PythonInterpreter

    command = list(PythonInterpreter().deno_command)
    # One module of its runner is on a host of its own: the few lines that are used of it are beside this file.
    (runner,) = [word for word in command if word.endswith(".js")]
    found = re.search(r'import \{ readLines \} from "([^"]+)"', Path(runner).read_text("utf-8"))
    assert found is not None
    module = found[1]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"imports": {module: Path(__file__).with_name("lines.js").as_uri()}}, file)
        file.flush()
        command.insert(command.index("run") + 1, f"--import-map={file.name}")
        with PythonInterpreter(deno_command=command) as interpreter:
            interpreter.execute("0")  # it starts with its first code
            yield lambda code: str(interpreter.execute(code))


@contextmanager
def _lm_handler() -> Iterator[tuple[str, int]]:
    """The official library's own server for sub-calls, with a model that answers at once."""
    from rlm.clients.base_lm import BaseLM
    from rlm.core.lm_handler import LMHandler
    from rlm.core.types import ModelUsageSummary, UsageSummary

    class Instant(BaseLM):  # type: ignore[misc]
        def completion(self, prompt: object) -> str:
            return "yes"

        async def acompletion(self, prompt: object) -> str:
            return "yes"

        def get_usage_summary(self) -> Any:
            return UsageSummary(model_usage_summaries={"instant": self.get_last_usage()})

        def get_last_usage(self) -> Any:
            return ModelUsageSummary(total_calls=1, total_input_tokens=1, total_output_tokens=1)

    with LMHandler(Instant("instant")) as handler:
        yield handler.address


def _docker_with_a_network(folder: str) -> None:
    """Its `docker run` names no network and so needs the default bridge, which not every engine has."""
    docker = shutil.which("docker") or "docker"
    form = "{{(index .IPAM.Config 0).Gateway}}"
    inspect = [docker, "network", "inspect", "-f", form, NETWORK]
    gateway = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.strip()
    shim = os.path.join(folder, "docker")
    with open(shim, "w") as file:
        options = f"--network {NETWORK} --add-host host.docker.internal:{gateway}"
        file.write(
            f"""#!/bin/bash
if [ "$1" = run ]; then
  shift
  set -- run {options} "${{@/host.docker.internal:host-gateway/unused:127.0.0.1}}"
fi
exec {docker} "$@"
"""
        )
    os.chmod(shim, 0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


PEERS = {
    each.__name__: each for each in (rlms_local, rlms_docker, jupyter_local, llm_sandbox, smolagents_docker, dspy_deno)
}


MODULES = {
    "rlms_local": "rlm.environments.local_repl",
    "rlms_docker": "rlm.environments.docker_repl",
    "jupyter_local": "jupyter_client.manager",
    "llm_sandbox": "llm_sandbox",
    "smolagents_docker": "smolagents.remote_executors",
    "dspy_deno": "dspy.primitives.python_interpreter",
}


ASKS = ("rlms_local", "rlms_docker")  # whose code has `llm_query`


def main(name: str, cells: int) -> None:
    """Prints `{"start": [s], "cell": [s, ...], "question": [s, ...], "only question": [s, ...]}`."""
    found: dict[str, list[float]] = {"start": [], "cell": [], "question": [], "only question": []}
    import_module(MODULES[name])  # once in a process, and so no part of a start
    began = time.perf_counter()
    with PEERS[name]() as run:
        found["start"].append(time.perf_counter() - began)
        if (printed := run(CELL).strip()) != "2":
            raise SystemExit(f"{name} printed {printed[:200]!r}")
        for number in range(WARM_UP + cells):
            began = time.perf_counter()
            run(CELL)
            if number >= WARM_UP:
                found["cell"].append(time.perf_counter() - began)
        if name in ASKS:
            found["question"] = [float(line) for line in run(ASK).split()][WARM_UP:]
            found["only question"] = [float(run(ASK_ONCE)) for _ in range(WARM_UP + cells)][WARM_UP:]
    sys.__stdout__.write("\n" + json.dumps(found) + "\n")  # type: ignore[union-attr]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
