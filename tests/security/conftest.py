"""Real containers under attack, for each runtime; what the probes found is kept for the table of docs/security.md."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator.sandbox.engine_docker import DockerEngine
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings
from tests.docker_fixtures import docker_sandboxes, no_leaks, sandbox_image, sandbox_settings, state_dir
from tests.security.arena import NEIGHBOR_SECONDS, PROBE_NAME, Arena, arena, runtimes
from tests.security.control import Control, open_control

__all__ = ["docker_sandboxes", "no_leaks", "sandbox_image", "sandbox_settings", "state_dir"]

RESULTS = Path(__file__).resolve().parents[2] / ".build" / "probes.json"
Found = Callable[[str], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runtime" in metafunc.fixturenames:
        metafunc.parametrize("runtime", runtimes(), scope="module")


@pytest.fixture
def found(record_property: Callable[[str, object], None]) -> Found:
    """Keeps what a probe met, in a word or two, for the table."""
    return lambda text: record_property("found", str(text))  # an enum would not cross to the reporting process


@pytest.fixture(autouse=True)
def _neighbor_times(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Keeps the longest that a neighbor waited for its answer during the test."""
    NEIGHBOR_SECONDS.clear()
    yield
    if NEIGHBOR_SECONDS:
        record_property("neighbor_ms", round(max(NEIGHBOR_SECONDS) * 1000))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def roomy(runtime: str, sandbox_image: str) -> AsyncIterator[Arena]:
    """Sandboxes with the policy's own limits."""
    async with _arena(runtime, SandboxSettings(state_dir=Path(), image=sandbox_image)) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def small(runtime: str, sandbox_image: str) -> AsyncIterator[Arena]:
    """Sandboxes with little of everything, so that an attack is short.

    gVisor's own kernel is a process of the container, with threads of its own: too few of them end it.
    """
    pids = 256 if runtime == "runsc" else 64
    settings = SandboxSettings(state_dir=Path(), image=sandbox_image, memory_mib=256, pids=pids, tmp_mib=16)
    async with _arena(runtime, settings) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def control(sandbox_image: str) -> AsyncIterator[Control]:
    """A container of the same image with the hardening off: what a probe finds shut must be open here."""
    async with open_control(sandbox_image) as opened:
        yield opened


@asynccontextmanager
async def _arena(runtime: str, settings: SandboxSettings) -> AsyncIterator[Arena]:
    state = Path(f"/var/tmp/rlm-test-{secrets.token_hex(4)}")
    settings = replace(settings, state_dir=state, runtime=runtime, pool_max=0, cell_grace_s=1)
    try:
        async with DockerSandboxes.start(settings) as sandboxes, arena(sandboxes, runtime) as opened:
            yield opened
        await _assert_nothing_left(state)
    finally:
        shutil.rmtree(state, ignore_errors=True)


async def _assert_nothing_left(state: Path) -> None:
    engine = DockerEngine()
    try:
        assert await engine.owned((state / "id").read_text()) == []
    finally:
        await engine.close()
    for folder in ("s", "owners", "notes"):
        assert not os.listdir(state / folder), f"{folder}/ is not empty"


class ProbeTable:
    """Gathers the outcome of each probe, in the process that gets all reports."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name, _, parameters = report.nodeid.rpartition("::")[2].partition("[")
        match = PROBE_NAME.fullmatch(name)
        if match is None or (report.when == "setup" and report.passed):
            return
        runtime = next((each for each in ("runsc", "runc") if each in parameters.rstrip("]").split("-")), "")
        # Without a runtime: either no container is in it at all, or one of the engine's own runtime.
        runtime = runtime or ("host" if "test_hostile_" in report.nodeid else "runc")
        kept = dict(report.user_properties)
        for probe in match[1].strip("_").split("_"):
            key = f"{probe}/{runtime}/{name}[{parameters}"
            if report.when == "teardown" and report.passed:
                # It is known after the call.
                if key in self.rows and "neighbor_ms" in kept:
                    self.rows[key]["neighbor_ms"] = str(kept["neighbor_ms"])
                continue
            self.rows[key] = {
                "probe": probe,
                "runtime": runtime,
                "expectation": match[2].replace("_", " "),
                "outcome": report.outcome,
                "found": str(kept.get("found", "")),
            }

    def pytest_sessionfinish(self) -> None:
        if not self.rows:
            return
        RESULTS.parent.mkdir(exist_ok=True)
        try:
            kept = json.loads(RESULTS.read_text("utf-8"))
        except (OSError, ValueError):
            kept = {}
        partial = RESULTS.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(kept | self.rows, indent=1, sort_keys=True), "utf-8")
        partial.rename(RESULTS)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(ProbeTable(), "probe-table")
