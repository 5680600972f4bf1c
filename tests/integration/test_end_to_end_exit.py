"""A program that uses the library and just ends, without `close`, leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.testing.scripted import Policy, ScriptedServerThread, constant, echo
from tests.integration.e2e_command import environment
from tests.integration.e2e_world import containers_of, reply

pytestmark = pytest.mark.docker

PROGRAM = """
from orchestrator import RLM

print(RLM().completion("a b c d", "Repeat it."))
{ending}
"""


@pytest.mark.parametrize("ending", ["", "raise RuntimeError('a bug of the program')", "raise SystemExit(3)"])
def test_a_program_that_ends_takes_its_containers_along(ending: str, state_dir: Path) -> None:
    policies: dict[str, Policy] = {
        # Children by the handful, so that the pool keeps more of them ready when the program ends.
        "depth-0": constant(reply("FINAL(' '.join(llm_batch(context.split())))")),
        "depth-1": constant(reply("FINAL(context)")),
        "leaf": echo,
    }
    with ScriptedServerThread(policies) as server:
        program = PROGRAM.format(ending=ending)
        environ = environment(server.base_url, 2)
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "a b c d\n", done.stderr
    assert "could not be" not in done.stderr
    assert asyncio.run(containers_of(state_dir)) == [], done.stderr
    assert os.listdir(state_dir / "owners") == []
