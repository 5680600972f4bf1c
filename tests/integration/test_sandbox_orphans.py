"""However an orchestrator ends, no container outlives it for long."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.sandbox.engine_docker import DockerEngine
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ORCHESTRATOR = """
import asyncio, sys
from pathlib import Path
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings

async def main():
    settings = SandboxSettings(state_dir=Path(sys.argv[1]), image=sys.argv[2], pool_min=1)
    async with DockerSandboxes.start(settings) as sandboxes:
        if sys.argv[3] == "starting":
            print("ready", flush=True)
        async with sandboxes.open(None, None) as sandbox:
            await sandbox.run("1")
            print("ready", flush=True)
            await sandbox.run("import time; time.sleep(3600)", time_limit_s=3600)

asyncio.run(main())
"""


@asynccontextmanager
async def engine_of_test() -> AsyncIterator[DockerEngine]:
    engine = DockerEngine()
    try:
        yield engine
    finally:
        await engine.close()


async def killed_orchestrator(state_dir: Path, image: str, moment: str) -> None:
    """Starts an orchestrator with a process group of its own, and kills the whole group at that moment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ORCHESTRATOR, str(state_dir), image, moment),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def gone(path: Path) -> None:
    while os.path.exists(path):  # noqa: ASYNC110, ASYNC240  # another process removes it
        await asyncio.sleep(0.2)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("moment", ["starting", "running"])
async def test_a_killed_orchestrator_leaves_nothing_and_the_next_one_is_told(
    state_dir: Path, sandbox_image: str, sandbox_settings: SandboxSettings, moment: str
) -> None:
    await killed_orchestrator(state_dir, sandbox_image, moment)
    [record] = (state_dir / "owners").iterdir()
    async with asyncio.timeout(60):
        await gone(record)  # the reaper removes it last
    async with engine_of_test() as engine:
        assert await engine.owned((state_dir / "id").read_text()) == []
    assert os.listdir(state_dir / "s") == []
    async with DockerSandboxes.start(sandbox_settings) as sandboxes:
        [note] = sandboxes.reclaimed.notes
        assert "was killed; its reaper removed" in note


async def test_without_its_reaper_the_next_start_cleans_up(
    state_dir: Path, sandbox_image: str, sandbox_settings: SandboxSettings
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ORCHESTRATOR, str(state_dir), sandbox_image, "running"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    await process.stdout.readline()
    [reaper] = children_of(process.pid)
    os.kill(reaper, signal.SIGKILL)
    process.kill()
    await process.wait()
    async with DockerSandboxes.start(sandbox_settings) as sandboxes:
        found = sandboxes.reclaimed
        # The one in use; the pool's refill may have begun or not.
        assert found.containers
        assert "removed what an earlier process left behind" in str(found)


async def test_another_living_orchestrator_is_left_alone(sandbox_settings: SandboxSettings) -> None:
    async with (
        DockerSandboxes.start(sandbox_settings) as first,
        first.open(None, None) as sandbox,
        DockerSandboxes.start(replace(sandbox_settings, sweep_interval_s=0.1)) as second,
    ):
        assert not second.reclaimed
        async with second.open(None, None) as other:
            assert (await other.run("1")).stdout.text == "1\n"
        assert (await sandbox.run("2")).stdout.text == "2\n"


async def test_the_agent_ends_itself_after_its_lifetime(sandbox_settings: SandboxSettings) -> None:
    async with (
        DockerSandboxes.start(replace(sandbox_settings, max_lifetime_s=2.0)) as sandboxes,
        sandboxes.open(None, None) as sandbox,
        engine_of_test() as engine,
    ):
        ended = await engine.wait_exit(sandbox.name, 20)
        assert ended is not None
