"""A recorded run is a test: read again, it still decides alike, and a record that was tampered with does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import RunNotReplayable
from orchestrator.events import RlmEnded
from orchestrator.folds.journal import JournalReader, JournalWriter
from orchestrator.rlm.replay import replay
from orchestrator.testing.scripted import Policy, constant, echo, sequence
from tests.integration.e2e_world import reply, world

pytestmark = pytest.mark.docker

POLICIES: dict[str, Policy] = {
    "depth-0": sequence(
        [
            "I only think, without code.",
            reply("parts = context.split()\n1 / 0"),
            reply("print(parts)") + reply("found = llm_batch(parts)"),
            "FINAL_VAR(nowhere)",
            "FINAL_VAR(found)",
        ]
    ),
    "depth-1": constant(reply("FINAL(llm_query(context) + '!')")),
    "leaf": echo,
}


@pytest.fixture
async def journal(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    async with world(POLICIES) as w:
        with JournalWriter(path, package="test") as writer:
            w.sinks.append(writer)
            assert (await w.ask(context="one two three")).answer == '["one!", "two!", "three!"]'
        assert writer.problem == ""
    return path


def test_a_recorded_run_replays_to_the_same_decisions(journal: Path) -> None:
    records = list(JournalReader(journal))
    rlms = replay(records)
    assert [rlm.transcript.start.depth for rlm in rlms] == [0, 1, 1, 1]
    assert [rlm.ended for rlm in rlms if rlm.ended is not None] == [rlm.ended for rlm in rlms]
    assert sorted(rlm.ended.answer or "" for rlm in rlms if rlm.ended) == sorted(
        record.event.answer or "" for record in records if isinstance(record.event, RlmEnded)
    )


def test_the_command_verifies_a_record_and_refuses_one_that_was_changed(journal: Path) -> None:
    verified = _show(journal, "--verify")
    assert verified.returncode == 0, verified.stderr

    text = journal.read_text()
    journal.write_text(text.replace("found = llm_batch(parts)", "found = llm_batch(other)", 1))
    with pytest.raises(RunNotReplayable):
        replay(JournalReader(journal))
    assert _show(journal, "--verify").returncode == 8


def _show(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", "show", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)
