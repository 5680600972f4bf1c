from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.events import Outcome, RunEnded
from orchestrator.folds.journal import JournalWriter
from orchestrator.values import Ending, Spent
from tests.unit.cli_fakes import run_cli
from tests.unit.sample_runs import Script, whole_run


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    path = tmp_path / "run.jsonl"
    with JournalWriter(path, package="0.1.0") as journal:
        whole_run(journal)
    return str(path)


def test_everything_is_shown(recorded: str) -> None:
    ran = run_cli("show", recorded)
    assert (ran.exit_code, ran.stderr) == (0, "")
    for part in (
        "batch of 3",
        "run_1 ok: 5 model calls · 600 tokens · $0.023 · 2 sandboxes · 0:04",
        "Answer (final): The gardener.",
        "[Depth 0] iteration 1/20 · cell\n    answers = llm_batch(parts)\n    answers[0]\n  stdout, 5 bytes:\n    seen",
        "    IndexError: no more\n  -> error after 0.00 s",
        "[Depth 0] iteration 2/20 · cell\n    FINAL('The gardener.')\n  -> ok after 0.00 s\n",
        "  -> final answer: The gardener.",
        "sub-call 0\n    Part 0?\n  ->\n    It says so.",
        "sub-call 1\n    Part 1?\n  -> model: the model failed",
        "sub-RLM 2\n    Part 2?",
    ):
        assert part in ran.stdout


@pytest.mark.parametrize(
    ("option", "shown", "left_out"),
    [
        ("--tree", "batch of 3", "FINAL('The gardener.')"),
        ("--cells", "FINAL('The gardener.')", "It says so."),
        ("--calls", "It says so.", "FINAL('The gardener.')"),
    ],
)
def test_one_part_alone(recorded: str, option: str, shown: str, left_out: str) -> None:
    stdout = run_cli("show", option, recorded).stdout
    assert shown in stdout
    assert left_out not in stdout


def test_json_has_the_totals(recorded: str) -> None:
    found = json.loads(run_cli("show", "--json", recorded).stdout)
    assert (found["run_id"], found["outcome"], found["answer"]) == ("run_1", "ok", "The gardener.")
    assert found["by_depth"]["1"]["calls"] == 3
    assert (found["by_batch"][0]["size"], found["by_batch"][0]["failed"]) == (3, 1)
    assert found["complete"] is True


def test_json_has_what_was_billed(tmp_path: Path) -> None:
    """What was paid for and never heard is in no event of a call."""
    path = tmp_path / "run.jsonl"
    with JournalWriter(path, package="0.1.0") as journal:
        script = Script((journal,))
        script.start()
        script.call(script.run)
        script.run.emit(RunEnded(Outcome.OK, "a", Ending.FINAL, Spent(calls=7, cost_usd=1.5), 1.0))
    found = json.loads(run_cli("show", "--json", str(path)).stdout)
    assert (found["spent"]["calls"], found["spent"]["cost_usd"]) == (7, 1.5)


def test_a_killed_run_is_shown_as_far_as_it_came(recorded: str) -> None:
    path = Path(recorded)
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:15]) + b'\n{"seq":')
    ran = run_cli("show", recorded)
    assert ran.exit_code == 0
    assert "The recording ends before the run did." in ran.stdout
    assert "last line is torn" in ran.stderr
    assert json.loads(run_cli("show", "--json", recorded).stdout)["complete"] is False


def test_terminal_controls_of_a_model_do_not_come_through(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JournalWriter(path, package="0.1.0") as journal:
        script = Script((journal,))
        script.start("evil \x1b]0;title\x07query")
        cell = script.cell(script.iteration(script.rlm(script.run)), "print('\x1b[2J')")
        batch = script.batch(cell, 2)
        script.answer(script.query(batch, prompt="\x9b2J\u202eprompt"))
    stdout = run_cli("show", str(path)).stdout
    assert not any(control in stdout for control in "\x1b\x9b\x07\u202e")


def test_another_file_is_refused_with_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello\n")
    ran = run_cli("show", str(tmp_path / "x"))
    assert ran.exit_code == 8
    assert "line 1: this is not a recorded run" in ran.stderr
