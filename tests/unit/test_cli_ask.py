from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator import errors
from orchestrator.events import Outcome, Sink, TimeRanShort
from orchestrator.folds.journal import JournalReader
from orchestrator.values import Ending
from tests.unit.cli_fakes import FakeOrchestrator, FakeResult, run_cli
from tests.unit.sample_runs import Script


def test_the_answer_alone_is_on_stdout() -> None:
    result = run_cli("ask", "Who did it?")
    assert result.exit_code == 0
    assert result.stdout == "The gardener.\n"
    assert "2 iterations · 5 model calls · 600 tokens · $0.023 · 2 sandboxes · 0:04" in result.stderr


def test_progress_is_plain_lines_when_stderr_is_no_terminal() -> None:
    lines = run_cli("ask", "Who did it?").stderr.splitlines()
    assert "[0:00] iteration 1/20" in lines
    assert any("batch of 3" in line for line in lines)
    assert any("batch 3/3, 1 failed" in line for line in lines)


def test_quiet_leaves_stderr_empty() -> None:
    assert run_cli("ask", "-q", "Who did it?").stderr == ""


def test_verbose_logs_lines_with_depth() -> None:
    stderr = run_cli("ask", "-v", "Who did it?").stderr
    assert "[Depth 0] iteration 1/20" in stderr
    assert "[Depth 1] RLM started on small: Part 2?" in stderr
    assert "FINAL('The gardener.')" not in stderr
    assert "FINAL('The gardener.')" in run_cli("ask", "-vv", "Who did it?").stderr


def test_json_is_one_object_with_everything() -> None:
    result = run_cli("ask", "--json", "Who did it?")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["answer"] == "The gardener."
    assert (found["ending"], found["run_id"], found["seconds"], found["error"]) == ("final", "run_1", 4.2, None)
    assert found["spent"]["calls"] == 5
    assert found["by_model"]["big"]["cost_usd"] == 0.023
    assert found["by_depth"]["0"]["sandboxes"] == 2
    assert [(each["depth"], each["size"], each["spent"]["calls"]) for each in found["by_batch"]] == [(0, 3, 3)]
    assert result.stderr == ""


def test_options_override_settings() -> None:
    fake = FakeOrchestrator()
    options = {
        **{"depth": 3, "model": "m", "sub-model": "s", "max-iterations": 7, "max-cost": 0.5, "max-calls": 9},
        **{"max-tokens": 1000, "max-seconds": 60, "max-concurrent": 4, "max-sandboxes": 5, "runtime": "runsc"},
        **{"memory": "1g", "cell-timeout": 30, "image": "img"},
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    ran = run_cli("ask", "Q", *arguments, orchestrator=fake, environ={"RLM_MODEL": "other"})
    assert ran.exit_code == 0, ran.stderr
    (config,) = fake.configs
    assert (config.max_depth, config.model, config.recursive_model, config.max_iterations) == (3, "m", "s", 7)
    assert (config.max_cost_usd, config.max_calls, config.max_tokens, config.max_seconds) == (0.5, 9, 1000, 60)
    assert (config.max_concurrent, config.max_sandboxes, config.runtime) == (4, 5, "runsc")
    assert (config.memory_mib, config.cell_timeout_s, config.image) == (1024, 30, "img")


def test_files_become_the_context(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("1")
    two.write_text("2")
    fake = FakeOrchestrator()
    run_cli("ask", "Q", str(one), orchestrator=fake)
    run_cli("ask", "Q", str(one), str(two), orchestrator=fake)
    run_cli("ask", "Q", "-", orchestrator=fake, stdin="from a pipe")
    run_cli("ask", "Q", orchestrator=fake)
    assert [context for _, context in fake.asked] == [one, {str(one): "1", str(two): "2"}, "from a pipe", None]


def test_what_is_skipped_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for index in range(7):
        (tmp_path / f"b{index}.bin").write_bytes(b"\0")
    lines = run_cli("ask", "Q", str(tmp_path)).stderr.splitlines()
    assert f"Skipped: {tmp_path}/b0.bin (not text)" in lines
    assert "Skipped: 2 more" in lines


def test_what_start_up_cleaned_is_said() -> None:
    stderr = run_cli("ask", "Q", orchestrator=FakeOrchestrator(cleaned=("removed container x",))).stderr
    assert "Cleaned up: removed container x" in stderr


def test_a_best_effort_answer_has_a_note() -> None:
    async def best_effort(sinks: Sequence[Sink]) -> FakeResult:
        return FakeResult(ending=Ending.BEST_EFFORT)

    result = run_cli("ask", "-q", "Q", orchestrator=FakeOrchestrator(answers=best_effort))
    assert (result.exit_code, result.stdout) == (0, "The gardener.\n")
    assert "best answer so far" in result.stderr
    assert "--max-iterations" in result.stderr


def test_a_best_effort_answer_for_want_of_time_says_so() -> None:
    async def best_effort(sinks: Sequence[Sink]) -> FakeResult:
        script = Script(tuple(sinks))
        script.start()
        script.rlm(script.run).emit(TimeRanShort(3.0))
        return FakeResult(ending=Ending.BEST_EFFORT)

    stderr = run_cli("ask", "-q", "Q", orchestrator=FakeOrchestrator(answers=best_effort)).stderr
    assert "the time ran out" in stderr
    assert "--max-seconds" in stderr


def test_a_recording_never_takes_the_place_of_an_input(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    fake = FakeOrchestrator()
    path = str(tmp_path / "precious.txt")
    result = run_cli("ask", "Q", path, "--record", path, orchestrator=fake)
    assert result.exit_code == 2
    assert "is one of the inputs, and would be overwritten" in result.stderr
    assert (fake.asked, (tmp_path / "precious.txt").read_text()) == ([], "precious")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("Q",), True), (("-q", "Q"), False), (("Q", "-"), False)],
    ids=["without", "quiet", "with -"],
)
def test_input_that_nobody_reads_is_told(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: bool
) -> None:
    monkeypatch.setattr("orchestrator.cli.ask.has_unread_input", lambda: True)
    result = run_cli("ask", *arguments, stdin="piped")
    assert result.exit_code == 0
    assert ("standard input is not read. Give -" in result.stderr) is said


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.InvalidInput("context", "is empty."), 2),
        (errors.ModelFailed(errors.ModelFailure.AUTHENTICATION, "m", "bad key", status=401), 3),
        (errors.SandboxUnavailable("no engine.", "Start it."), 4),
        (errors.SandboxLost("s-1", errors.LossCause.OUT_OF_MEMORY), 5),
        (errors.BudgetExceeded("max_calls", 5, 5, 1), 6),
        (errors.DeadlineExceeded("max_seconds", 9.0), 7),
    ],
)
def test_each_failure_has_its_exit_code_and_no_traceback(error: errors.RLMError, exit_code: int) -> None:
    async def fail(sinks: Sequence[Sink]) -> FakeResult:
        script = Script(tuple(sinks))
        script.start()
        script.call(script.run)
        script.end(outcome=Outcome.FAILED)
        raise error

    result = run_cli("ask", "Q", orchestrator=FakeOrchestrator(answers=fail))
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert f"Error: {error}" in result.stderr
    assert "Spent: 5 model calls · 600 tokens · $0.023" in result.stderr
    assert "Traceback" not in result.stderr
    found = json.loads(run_cli("ask", "--json", "Q", orchestrator=FakeOrchestrator(answers=fail)).stdout)
    assert found["answer"] is None
    assert found["spent"]["calls"] == 5
    assert found["error"]["type"] == type(error).__name__
    assert found["error"]["exit_code"] == exit_code


def test_a_bug_is_one_line_and_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def bug(sinks: Sequence[Sink]) -> FakeResult:
        raise LookupError("oh")

    monkeypatch.delenv("RLM_TRACEBACK", raising=False)
    result = run_cli("ask", "-q", "Q", orchestrator=FakeOrchestrator(answers=bug))
    assert result.exit_code == 70
    assert "Unexpected error: LookupError: oh" in result.stderr
    assert "RLM_TRACEBACK=1" in result.stderr
    monkeypatch.setenv("RLM_TRACEBACK", "1")
    result = run_cli("ask", "-q", "Q", orchestrator=FakeOrchestrator(answers=bug))
    assert isinstance(result.exception, LookupError)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_says_what_was_spent(number: signal.Signals, exit_code: int) -> None:
    cleaned_up: list[str] = []

    async def interrupted(sinks: Sequence[Sink]) -> FakeResult:
        script = Script(tuple(sinks))
        script.start()
        script.call(script.run)
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append("requests")
        raise AssertionError

    fake = FakeOrchestrator(answers=interrupted)
    result = run_cli("ask", "-q", "Q", orchestrator=fake)
    assert result.exit_code == exit_code
    assert cleaned_up == ["requests"]
    assert fake.closed == 1
    assert "Stopping: requests are canceled" in result.stderr
    assert "Spent: 1 model call · 120 tokens" in result.stderr
    found = json.loads(run_cli("ask", "-q", "--json", "Q", orchestrator=fake).stdout)
    assert (found["error"]["type"], found["spent"]["calls"]) == ("Canceled", 1)


def test_a_recording_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert run_cli("ask", "-q", "Q", "--record", str(path)).exit_code == 0
    assert len(list(JournalReader(path))) > 20


def test_a_recording_that_cannot_be_made_stops_before_anything_is_paid(tmp_path: Path) -> None:
    fake = FakeOrchestrator()
    result = run_cli("ask", "Q", "--record", str(tmp_path / "none" / "x"), orchestrator=fake)
    assert (result.exit_code, fake.asked) == (2, [])
    assert "--record: cannot write" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "0"], "max_depth"),
        (["--memory", "lots"], "is not a size"),
        (["--context-format", "xml"], "is not one of"),
        (["no-such-file"], "no such file or folder"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], message: str) -> None:
    result = run_cli("ask", "Q", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
