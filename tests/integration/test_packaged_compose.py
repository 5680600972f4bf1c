"""The compose example as a user has it: TLS and tokens, a named volume, no root; sandboxes on the same engine."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from orchestrator.client.calls import Client
from orchestrator.errors import ServiceFailed, ServiceFailure
from orchestrator.sandbox.engine import STATE_LABEL
from orchestrator.views import RunState, RunView
from tests.integration.e2e_world import IMAGE

pytestmark = pytest.mark.docker

_EXAMPLE = Path(__file__).parents[2] / "examples" / "compose"


class _Project:
    def __init__(self, folder: Path) -> None:
        self.name = f"rlm-test-{secrets.token_hex(4)}"
        self._folder = folder
        self._environ = {**os.environ, "COMPOSE_PROJECT_NAME": self.name}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self._folder, env=self._environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def client(self, token: str | None = None) -> Client:
        token = token or (self._folder / "credentials" / "token").read_text().strip()
        engine = docker.from_env()
        published = self.container(engine).attrs["NetworkSettings"]["Ports"]["7443/tcp"][0]
        engine.close()
        assert published["HostIp"] == "127.0.0.1"
        return Client(f"localhost:{published['HostPort']}", token, ca=self._folder / "credentials" / "cert.pem")

    def container(self, engine: docker.DockerClient) -> Container:
        labels = [f"com.docker.compose.project={self.name}", "com.docker.compose.service=orchestrator"]
        (found,) = engine.containers.list(all=True, filters={"label": labels})
        return found


@pytest.fixture
def project(tmp_path: Path) -> Iterator[_Project]:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    if not plugin and shutil.which("docker-compose") is None:
        pytest.skip("compose is not installed (Debian, Ubuntu: apt-get install docker-compose)")
    folder = tmp_path / "compose"
    shutil.copytree(_EXAMPLE, folder, ignore=shutil.ignore_patterns(".env", "credentials"))
    (folder / ".env").write_text(
        "COMPOSE_PROFILES=scripted\nOPENAI_API_KEY=scripted\nOPENAI_BASE_URL=http://model:8000/v1\n"
        f"RLM_MODELS=planner,echo\nRLM_IMAGE={IMAGE}\nRLM_PORT=0\nENGINE_GID={os.stat('/var/run/docker.sock').st_gid}\n"
    )
    project = _Project(folder)
    try:
        yield project
    finally:
        project.run("./up.sh", "--down", "--volumes")


async def _ended(client: Client, view: RunView) -> RunView:
    async for _ in client.watch(view.run_id):
        pass
    return await client.get(view.run_id)


@pytest.mark.timeout(300)
async def test_a_run_of_a_caller_with_a_token_and_nothing_of_it_is_left(project: _Project) -> None:
    await asyncio.to_thread(project.run, "./up.sh")
    engine = docker.from_env()
    try:
        async with project.client() as client:
            found = await _ended(client, await client.start("Which parts?", "a b c"))
            assert (found.state, found.answer) == (RunState.SUCCEEDED, "a+b+c"), found.problem
        async with project.client(token="rlm_wrong") as stranger:
            with pytest.raises(ServiceFailed) as caught:
                await stranger.list()
            assert caught.value.kind is ServiceFailure.UNAUTHENTICATED
        container = project.container(engine)
        said = container.exec_run(["sh", "-c", "cat /var/lib/rlm/id && echo && id -u"]).output
        assert isinstance(said, bytes)
        identity, user = said.decode().split()
        assert user == "10001"
        host = container.attrs["HostConfig"]
        assert (host["ReadonlyRootfs"], host["Privileged"], host["CapDrop"]) == (True, False, ["ALL"])
        await asyncio.to_thread(container.restart, timeout=45)
        await asyncio.to_thread(project.run, "./up.sh")
        async with project.client() as client:
            assert await client.get(found.run_id) == found, "the volume does not keep runs"
        await asyncio.to_thread(container.stop, timeout=45)
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0
        assert engine.containers.list(all=True, filters={"label": f"{STATE_LABEL}={identity}"}) == []
    finally:
        engine.close()
