"""`kill -9` of a running `rlm ask`, at several moments: its containers go, and the next command says so."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.testing.scripted import Hang, Policy, ScriptedServerThread, always, constant
from tests.integration.e2e_command import EngineEvents, engine_events, environment, its_end, reaper_of, started
from tests.integration.e2e_world import containers_of, reply

pytestmark = [pytest.mark.docker, pytest.mark.slow]

AT_MOST_S = 60
HANGING: dict[str, Policy] = {
    "depth-0": constant(reply("FINAL(str(llm_batch(['a', 'b', 'c'], max_concurrent=3)))")),
    "depth-1": constant(reply("FINAL(str(llm_batch([context + n for n in '12'])))")),
    "leaf": always(Hang()),
}
Moment = Callable[[ScriptedServerThread, EngineEvents], object]


def container_created(server: ScriptedServerThread, engine: EngineEvents) -> None:
    engine.until("create")


def container_running(server: ScriptedServerThread, engine: EngineEvents) -> None:
    engine.until("start")


def second_level_starts(server: ScriptedServerThread, engine: EngineEvents) -> None:
    """The root's cell runs, and waits for children whose containers are being made."""
    engine.until("start")
    engine.until("create")


def batches_in_flight(server: ScriptedServerThread, engine: EngineEvents) -> None:
    server.wait_for(lambda log: log.in_flight == 6, timeout_s=60)


@pytest.mark.parametrize(
    "moment", [container_created, container_running, second_level_starts, batches_in_flight], ids=lambda m: m.__name__
)
def test_nothing_is_left_of_a_killed_run_and_the_next_command_says_so(moment: Moment, state_dir: Path) -> None:
    with ScriptedServerThread(HANGING) as server, engine_events(state_dir) as engine:
        environ = environment(server.base_url, 2)
        with started("ask", "Why?", "-q", environ=environ, start_new_session=True) as process:
            moment(server, engine)
            with its_end(reaper_of(process.pid)) as reaper:
                # The whole group, as a terminal that closes or a supervisor would.
                os.killpg(process.pid, signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
                assert reaper.poll(AT_MOST_S * 1000), "the reaper is still at it"
        assert asyncio.run(containers_of(state_dir)) == []
        server.wait_for(lambda log: log.in_flight == 0)

        says = _next_command(environ)
        assert f"process {process.pid} was killed; its reaper removed" in says


def test_the_next_start_cleans_up_when_the_reaper_was_killed_too(state_dir: Path) -> None:
    with ScriptedServerThread(HANGING) as server, engine_events(state_dir) as engine:
        environ = environment(server.base_url, 2)
        with started("ask", "Why?", "-q", environ=environ) as process:
            batches_in_flight(server, engine)
            os.kill(reaper_of(process.pid), signal.SIGKILL)
            process.kill()
            process.wait()
        left = asyncio.run(containers_of(state_dir))
        assert len(left) >= 4

        says = _next_command(environ)
        assert "removed what an earlier process left behind" in says
        assert all(f"container {name}" in says for name in left)
        assert asyncio.run(containers_of(state_dir)) == []


def _next_command(environ: dict[str, str]) -> str:
    """What it says on stderr; it does its own work all the same."""
    command = [sys.executable, "-m", "orchestrator.cli", "exec", "-"]
    done = subprocess.run(command, env=environ, input=b"6 * 7", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"42\n"
    return done.stderr.decode()
