"""Fixtures for tests with real containers: an engine, an image, and a check that nothing is left.

A missing engine or image fails the test with what to do about it: a skipped test proves nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.engine_docker import DockerEngine
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings

IMAGE = os.environ.get("RLM_IMAGE", "rlm-sandbox:latest")


@pytest.fixture(scope="session")
def sandbox_image() -> str:
    """The image's ID; the session's tests fail with the remedy when engine or image are not there."""

    async def resolve() -> str:
        engine = DockerEngine(call_timeout_s=20)
        try:
            return await engine.resolve_image(IMAGE)
        finally:
            await engine.close()

    try:
        with asyncio.Runner() as runner:
            return runner.run(resolve())
    except SandboxUnavailable as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def state_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory for one test, also for what reads its settings from the environment."""
    # pytest's own temporary paths are too long for a socket.
    path = Path(f"/var/tmp/rlm-test-{secrets.token_hex(4)}")
    monkeypatch.setenv("RLM_STATE_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def no_leaks(state_dir: Path) -> AsyncIterator[None]:
    """Fails the test that leaves a container, a task, a directory, a socket or an owner's record behind."""
    tasks = _other_tasks()
    yield
    for _ in range(3):
        await asyncio.sleep(0)  # what was read of a stream, and not to its end, is closed by tasks of the loop's own
    left_tasks = _other_tasks() - tasks
    assert not left_tasks, f"tasks are left: {left_tasks}"
    identity = state_dir / "id"
    if not identity.exists():
        return
    engine = DockerEngine()
    try:
        left = await engine.owned(identity.read_text())
        for container in left:
            await engine.destroy(container.name)
    finally:
        await engine.close()
    assert not left, "containers are left"
    for folder in ("s", "owners", "notes"):
        assert not os.listdir(state_dir / folder), f"{folder}/ is not empty"


@pytest.fixture
def sandbox_settings(state_dir: Path, sandbox_image: str) -> SandboxSettings:
    # A busy machine may take more than a second until the code that it interrupts has heard of it.
    return SandboxSettings(state_dir=state_dir, image=sandbox_image, pool_max=0, cell_timeout_s=30, cell_grace_s=4)


@pytest.fixture
async def docker_sandboxes(no_leaks: None, sandbox_settings: SandboxSettings) -> AsyncIterator[DockerSandboxes]:
    async with DockerSandboxes.start(sandbox_settings) as sandboxes:
        yield sandboxes


def _other_tasks() -> set[asyncio.Task[object]]:
    # Set-up and teardown of a fixture are two tasks.
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
