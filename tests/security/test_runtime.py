"""A runtime that was asked for is the one that is used, or an error with its remedy: never another one."""

from __future__ import annotations

import signal
from dataclasses import replace

import msgspec
import pytest

from orchestrator.client.calls import Client
from orchestrator.errors import InvalidInput, RLMError, SandboxUnavailable
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.testing.scripted import constant
from tests.integration.e2e_world import reply, world
from tests.security.arena import runtimes
from tests.security.test_serve_refuses import _address, _serve, _until_it_serves

pytestmark = pytest.mark.docker
# gVisor tells of itself: in its kernel's messages, or by a version that no host of ours has.
WHERE = reply("import os\nFINAL('gVisor' if os.uname().release.startswith('4.4.0') else 'the host')")
needs_gvisor = pytest.mark.skipif("runsc" not in runtimes(), reason="gVisor is not installed: make gvisor")


async def test_a_missing_runtime_is_refused_and_not_downgraded(
    no_leaks: None, sandbox_settings: SandboxSettings
) -> None:
    async with DockerSandboxes.start(replace(sandbox_settings, runtime="no-such-runtime")) as sandboxes:
        with pytest.raises(SandboxUnavailable, match=r"runtime.*make gvisor"):
            async with sandboxes.open(None, None):
                pass


@needs_gvisor
async def test_each_run_has_the_runtime_that_it_asks_for(no_leaks: None) -> None:
    async with world({"depth-0": constant(WHERE), "leaf": constant("")}) as w:
        assert (await w.ask()).answer == "the host"
        assert (await w.ask(runtime="runsc")).answer == "gVisor"
        assert (await w.ask()).answer == "the host"


async def test_a_run_with_a_runtime_that_is_not_there_fails_before_a_model_is_asked(no_leaks: None) -> None:
    async with world({"depth-0": constant(WHERE), "leaf": constant("")}) as w:
        settings = msgspec.structs.replace(w.config, runtime="no-such-runtime")
        with pytest.raises(SandboxUnavailable, match="knows no runtime 'no-such-runtime'"):
            await w.orchestrator.ask("Where?", settings=settings)
        assert w.server.requests == ()


@needs_gvisor
async def test_a_service_checks_a_runs_runtime_before_its_first_use_and_refuses_a_lesser_one(no_leaks: None) -> None:
    with _serve({}) as process:
        _until_it_serves(process)
        async with Client(_address()) as client:
            with pytest.raises(InvalidInput, match="gVisor"):
                await client.start("Where?", settings={"runtime": "no-such-runtime"})
            assert list((await client.info()).weaknesses) == []
            run = await client.start("Where?", settings={"runtime": "runsc", "max_seconds": 60})
            async for _ in client.watch(run.run_id):
                break  # its sandboxes have been looked at before anything else of it
            weaknesses = list((await client.info()).weaknesses)
            try:
                await client.cancel(run.run_id)
            except RLMError:
                pass  # it has ended: there is no model
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert weaknesses
    assert all(name.startswith("runsc: ") for name in weaknesses)
    assert process.returncode == 0
