"""`rlm serve`, a process as an operator starts it, on an engine that does something else than it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client.calls import Client
from tests.integration.e2e_command import environment

pytestmark = pytest.mark.docker

# The command as it is, behind an engine that overrules the host's part of each container's configuration.
_COMMAND = """
import sys
from orchestrator.cli import main
from orchestrator.sandbox import engine_docker
honest, overruled = engine_docker.container_config, {overruled!r}
def dishonest(*arguments):
    config = honest(*arguments)
    return config | {{"NetworkDisabled": False, "HostConfig": config["HostConfig"] | overruled}}
engine_docker.container_config = dishonest
sys.argv = ["rlm", "serve", "--drain-grace", "0", *{options!r}]
main()
"""
_WEAKENED = [
    pytest.param({"NetworkMode": "host"}, "N11", id="network"),
    pytest.param({"ReadonlyRootfs": False}, "P5", id="writable"),
    pytest.param({"SecurityOpt": ["no-new-privileges:true", "seccomp=unconfined"]}, "K18", id="seccomp"),
]


@contextmanager
def _serve(overruled: dict[str, Any], *options: str) -> Iterator[subprocess.Popen[str]]:
    code = _COMMAND.format(overruled=overruled, options=options)
    # Nothing listens there, and no model is asked.
    environ = environment("http://127.0.0.1:9/v1", 1)
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # where the test has failed; one that ended is not signaled


def _address() -> str:
    return f"unix:{os.environ['RLM_STATE_DIR']}/rlm.sock"


def _until_it_serves(process: subprocess.Popen[str]) -> list[str]:
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("Serving on"):
            return said
    raise AssertionError("".join(said))


@pytest.mark.parametrize(("overruled", "probe"), _WEAKENED)
def test_it_refuses_by_the_probes_name_and_has_not_listened(
    no_leaks: None, state_dir: Path, overruled: dict[str, Any], probe: str
) -> None:
    with _serve(overruled) as process:
        _, stderr = process.communicate()
    assert process.returncode not in (0, None)
    assert "Serving on" not in stderr
    assert f"{probe} " in stderr
    assert "--allow-weaker" in stderr
    assert not (state_dir / "rlm.sock").exists()
    assert not (state_dir / "store").exists(), "a store was opened before the check"


@pytest.mark.parametrize(("overruled", "probe"), _WEAKENED)
async def test_where_that_is_allowed_it_serves_logs_the_weakness_and_shows_it_to_every_client(
    no_leaks: None, overruled: dict[str, Any], probe: str
) -> None:
    with _serve(overruled, "--allow-weaker", "--log-format", "json") as process:
        said = _until_it_serves(process)
        assert any("not so is that" in line and f"{probe} " in line for line in said), said
        async with Client(_address()) as client:
            weaknesses = list((await client.info()).weaknesses)
        assert any(name.startswith(f"{probe} ") for name in weaknesses), weaknesses
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0


async def test_an_engine_that_does_as_told_is_served_without_a_weakness(no_leaks: None) -> None:
    with _serve({}) as process:
        _until_it_serves(process)
        async with Client(_address()) as client:
            assert list((await client.info()).weaknesses) == []
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0
