"""The packaged service as its users' tests have it: in a container, with sandboxes beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from orchestrator.client.library import RLM, Sandbox, close
from orchestrator.errors import SandboxUnavailable, ServiceFailed
from orchestrator.events import BatchStarted, SandboxStarted
from orchestrator.sandbox.engine import STATE_LABEL
from orchestrator.testing import OrchestratorContainer, ScriptedModelContainer
from orchestrator.testing.containers import FOLDER_LABEL
from orchestrator.testing.scripted import ChatRequest, Hang, Outcome, ScriptedServerThread, echo, sequence
from orchestrator.views import RunState
from tests.integration.e2e_world import IMAGE, reply

# Several containers start in each; on a busy machine that takes its time.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

_ASKS_TWO = [reply("answers = llm_batch(['a', 'b'])"), reply("FINAL('+'.join(answers))")]


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    try:
        yield client
    finally:
        client.close()


def _service(base_url: str) -> OrchestratorContainer:
    return OrchestratorContainer(sandbox_image=IMAGE, base_url=base_url).with_env("RLM_MODELS", "planner,leaf")


def _names(engine: docker.DockerClient, label: str) -> list[str]:
    found = engine.containers.list(all=True, filters={"label": label}, ignore_removed=True)
    return [container.name or "" for container in found]


async def test_a_run_end_to_end_and_nothing_is_left(engine: docker.DockerClient) -> None:
    script = {"planner": {"replies": _ASKS_TWO}, "leaf": "echo"}
    with ScriptedModelContainer(script) as models, _service(models.base_url) as service:
        async with service.client() as client:
            view = await client.start("Which?", "x" * 100)
            records = [record async for record in client.watch(view.run_id)]
            found = await client.get(view.run_id)
        assert (found.state, found.answer) == (RunState.SUCCEEDED, "a+b"), found.problem
        assert any(isinstance(record.event, SandboxStarted) for record in records)
        folders = [service.folder, models.folder]
        identity = (service.state_dir / "id").read_text()
    assert not any(folder.exists() for folder in folders)
    assert _names(engine, f"{STATE_LABEL}={identity}") == []
    for folder in folders:
        assert _names(engine, f"{FOLDER_LABEL}={folder}") == []


def test_models_of_the_test_itself_and_sandboxes_are_reached(engine: docker.DockerClient) -> None:
    with (
        ScriptedServerThread({"planner": sequence(_ASKS_TWO), "leaf": echo}) as models,
        _service(models.base_url) as service,
    ):
        assert RLM(server=service.address).completion({"a": 1}, "Which?") == "a+b"
        with Sandbox({"a": [1, 2]}, server=service.address) as sandbox:
            assert sandbox.run_sync("print(context['a'][1])").stdout.text == "2\n"
        health = ["/opt/rlm/python", "-m", "orchestrator.server.health"]
        assert service.exec(health).exit_code == 0
        assert service.exec([*health, "unix:/tmp/none.sock"]).exit_code == 1
        _check_rights(service)
        close()


def _check_rights(service: OrchestratorContainer) -> None:
    """It has no more of them than it needs."""
    found = service.get_wrapped_container().attrs or {}
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert found["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    assert not found["NetworkSettings"]["Ports"]
    socket = Path(service.address.removeprefix("unix:"))
    assert socket.stat().st_mode & 0o777 == 0o600
    assert service.folder.stat().st_mode & 0o777 == 0o700


async def test_stopping_it_while_it_works_leaves_nothing(engine: docker.DockerClient) -> None:
    def hang(request: ChatRequest) -> Outcome:
        return Hang()

    with ScriptedServerThread({"planner": sequence(_ASKS_TWO), "leaf": hang}) as models:
        with _service(models.base_url) as service:
            async with service.client() as client:
                view = await client.start("Which?")
                async for record in client.watch(view.run_id):
                    if isinstance(record.event, BatchStarted):
                        break
            label = f"{STATE_LABEL}={(service.state_dir / 'id').read_text()}"
            assert _names(engine, label), "no sandbox was there"
            folder = service.folder
        assert _names(engine, label) == []
        assert not folder.exists()


_KILLED = """
import sys
from orchestrator.testing import OrchestratorContainer
from orchestrator.client.library import Sandbox
service = OrchestratorContainer(sandbox_image=sys.argv[1]).start()
sandbox = Sandbox(server=service.address).__enter__()
print(service.folder, (service.state_dir / "id").read_text(), flush=True)
sys.stdin.read()
"""


def test_what_a_killed_test_process_has_left_goes_with_the_next_start(engine: docker.DockerClient) -> None:
    command = [sys.executable, "-c", _KILLED, IMAGE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, identity = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    assert _names(engine, f"{FOLDER_LABEL}={folder}")
    assert _names(engine, f"{STATE_LABEL}={identity}")
    with ScriptedModelContainer():
        assert not os.path.exists(folder)
        assert _names(engine, f"{FOLDER_LABEL}={folder}") == []
        assert _names(engine, f"{STATE_LABEL}={identity}") == []


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SandboxUnavailable, match="make image-orchestrator"):
        OrchestratorContainer("rlm-orchestrator:none").start()
    with pytest.raises(ServiceFailed, match="rlm-sandbox:none"):
        OrchestratorContainer(sandbox_image="rlm-sandbox:none").start()
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        OrchestratorContainer()
