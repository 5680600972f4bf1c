from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.values import (
    Captured,
    CellResult,
    CellStatus,
    CodeError,
    DeathCause,
    OutputChunk,
    OutputStream,
    WorkerDeath,
)
from tests.unit.cli_fakes import FakeOrchestrator, FakeSandbox, run_cli

ERROR = CodeError("ValueError", "no", "Traceback (most recent call last):\nValueError: no")


def _exec(
    result: CellResult, chunks: tuple[OutputChunk, ...] = (), *options: str
) -> tuple[int, str, str, FakeOrchestrator]:
    fake = FakeOrchestrator(box=FakeSandbox(result, chunks))
    ran = run_cli("exec", "-", *options, orchestrator=fake, stdin="print(1)")
    return ran.exit_code, ran.stdout, ran.stderr, fake


def test_output_goes_where_the_code_wrote_it() -> None:
    chunks = (
        OutputChunk(OutputStream.STDOUT, 0, "one\n"),
        OutputChunk(OutputStream.STDERR, 0, "two\n"),
        OutputChunk(OutputStream.STDOUT, 4, "three\n"),
    )
    result = CellResult(CellStatus.OK, Captured("one\nthree\n", "", 10), Captured("two\n", "", 4))
    exit_code, stdout, stderr, fake = _exec(result, chunks, "--timeout", "7")
    assert (exit_code, stdout, stderr) == (0, "one\nthree\n", "two\n")
    assert fake.box.codes == ["print(1)"]
    assert fake.box.time_limits == [7.0]


def test_a_gap_in_the_output_is_told() -> None:
    chunks = (OutputChunk(OutputStream.STDOUT, 0, "head"), OutputChunk(OutputStream.STDOUT, 1_004, "tail"))
    _, stdout, _, _ = _exec(CellResult(CellStatus.OK, Captured("head", "tail", 1_008, 1_000)), chunks)
    assert stdout == "head\n[... 1,000 bytes left out ...]\ntail"


def test_output_that_was_not_streamed_is_shown_at_the_end() -> None:
    assert _exec(CellResult(CellStatus.OK, Captured("late\n", "", 5)))[1] == "late\n"


@pytest.mark.parametrize(
    ("result", "exit_code", "message"),
    [
        (CellResult(CellStatus.ERROR, error=ERROR), 1, "ValueError: no"),
        (CellResult(CellStatus.ERROR, error=CodeError("SystemExit", "3", "Traceback")), 1, ""),
        (CellResult(CellStatus.ERROR, error=CodeError("SystemExit", "no input", "Traceback")), 1, "no input\n"),
        (CellResult(CellStatus.ERROR, error=CodeError("SystemExit", "0", "")), 0, ""),
        (CellResult(CellStatus.TIMED_OUT), 124, "cell_timeout_s=120 s. Raise --timeout"),
        (CellResult(CellStatus.INTERRUPTED), 130, ""),
        (
            CellResult(CellStatus.WORKER_DIED, death=WorkerDeath(DeathCause.OUT_OF_MEMORY)),
            9,
            "died: out of memory. Raise --memory.",
        ),
        (CellResult(CellStatus.WORKER_DIED, death=WorkerDeath(DeathCause.CRASHED, 11)), 9, "died: crashed (11)."),
    ],
)
def test_the_exit_code_tells_how_it_ended(result: CellResult, exit_code: int, message: str) -> None:
    found, _, stderr, _ = _exec(result)
    assert found == exit_code
    assert message in stderr
    if not message:
        assert stderr == ""


def test_json_has_the_whole_result() -> None:
    result = CellResult(CellStatus.ERROR, Captured("\x1b[31mout", "", 8), error=ERROR, seconds=1.5)
    exit_code, stdout, stderr, _ = _exec(result, (), "--json")
    found = json.loads(stdout)
    assert "\x1b" not in stdout
    assert (exit_code, found["exit_code"], found["status"]) == (1, 1, "error")
    assert found["stdout"] == {"text": "\x1b[31mout", "bytes": 8, "omitted_bytes": 0}
    assert found["code_error"]["type"] == "ValueError"
    assert (found["seconds"], stderr) == (1.5, "")


def test_a_file_and_a_context(tmp_path: Path) -> None:
    code, data = tmp_path / "code.py", tmp_path / "data.json"
    code.write_text("len(context)")
    data.write_text("[1, 2]")
    fake = FakeOrchestrator(cleaned=("removed a container",))
    ran = run_cli("exec", str(code), "--context", str(data), "--context-format", "json", orchestrator=fake)
    assert (ran.exit_code, fake.box.codes, fake.contexts) == (0, ["len(context)"], [[1, 2]])
    assert "Cleaned up: removed a container" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.py"], "none.py: cannot be read: No such file"),
        (["-", "--context", "-"], "read once only"),
        (["-", "--timeout", "-1"], "cell_timeout_s"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], message: str) -> None:
    ran = run_cli("exec", *arguments, stdin="1")
    assert ran.exit_code == 2
    assert message in ran.stderr
