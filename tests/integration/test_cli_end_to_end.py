"""The command as a person runs it: a process, a real engine, and models that are scripts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.testing.scripted import ChatRequest, Hang, Outcome, Policy, Reply, ScriptedServerThread, sequence

pytestmark = pytest.mark.docker

_ROOT = sequence(
    [
        "I look first.\n```repl\nprint(len(context))\n```",
        "Each line apart.\n```repl\nanswers = llm_batch(context.splitlines(), max_concurrent=2)\nprint(answers)\n```",
        "```repl\nFINAL('+'.join(answers))\n```",
    ]
)


def _shout(request: ChatRequest) -> Reply:
    return Reply(request.last_user.upper())


class Cli:
    """Runs the command in a state directory of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        # Not this machine's settings: a key in them would make a test cost money.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RLM_", "OPENAI_"))}
        self.environ = {**kept, "RLM_STATE_DIR": str(state), "OPENAI_API_KEY": "scripted"}

    def start(self, *arguments: str, base_url: str = "http://127.0.0.1:9/v1") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env={**self.environ, "OPENAI_BASE_URL": base_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, base_url: str = "http://127.0.0.1:9/v1", stdin: str = "") -> tuple[int, str, str]:
        process = self.start(*arguments, base_url=base_url)
        stdout, stderr = process.communicate(stdin)
        return process.returncode, stdout, stderr

    def containers(self) -> list[str]:
        label = f"label=rlm.state={(self.state / 'id').read_text().strip()}"
        found = subprocess.run(
            ["docker", "ps", "-a", "--filter", label, "--format", "{{.Names}}"],
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.split()


@pytest.fixture
def cli() -> Iterator[Cli]:
    # pytest's own folders have long names, and a socket's path may have 107 bytes.
    state = Path(tempfile.mkdtemp(prefix="rlm-cli-", dir="/var/tmp"))
    cli = Cli(state)
    try:
        yield cli
        assert cli.containers() == []
        assert list((state / "s").iterdir()) == []
        assert list((state / "owners").iterdir()) == []
    finally:
        shutil.rmtree(state, ignore_errors=True)


def test_a_question_is_answered_recorded_and_replayed(cli: Cli, tmp_path: Path) -> None:
    recording, context = tmp_path / "run.jsonl", tmp_path / "context.txt"
    context.write_text("one\ntwo\nthree")
    with ScriptedServerThread({"root": _ROOT, "sub": _shout}) as server:
        exit_code, stdout, stderr = cli.run(
            *("ask", "What does it say?", str(context), "--model", "root", "--sub-model", "sub", "--json"),
            *("--record", str(recording)),
            base_url=server.base_url,
        )
    assert exit_code == 0, stderr
    found = json.loads(stdout)
    assert (found["answer"], found["ending"]) == ("ONE+TWO+THREE", "final")
    assert (found["spent"]["calls"], found["spent"]["sandboxes"]) == (6, 1)
    assert {depth: each["calls"] for depth, each in found["by_depth"].items()} == {"0": 3, "1": 3}

    exit_code, stdout, stderr = cli.run("show", "--verify", str(recording))
    assert (exit_code, stdout) == (0, "Replayed 1 RLM: this release decides alike.\n"), stderr
    exit_code, stdout, _ = cli.run("show", "--json", str(recording))
    # What the recording adds up to is what the run said that it spent.
    assert json.loads(stdout)["by_depth"]["0"]["input_tokens"] == found["by_depth"]["0"]["input_tokens"]
    exit_code, stdout, _ = cli.run("show", str(recording))
    assert "✓ batch of 3" in stdout
    assert "    THREE" in stdout


def test_ctrl_c_leaves_nothing_behind(cli: Cli) -> None:
    def hang(request: ChatRequest) -> Outcome:
        return Hang()

    root: Policy = sequence(["```repl\nllm_batch(['a', 'b'])\n```"])
    with ScriptedServerThread({"root": root, "sub": hang}) as server:
        process = cli.start("ask", "Q", "--model", "root", "--sub-model", "sub", base_url=server.base_url)
        assert process.stderr is not None
        for line in process.stderr:
            if "batch of 2" in line:
                break
        assert cli.containers() != []
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    assert "Stopping: requests are canceled" in stderr
    assert "Spent: " in stderr


def test_what_a_killed_process_left_is_reclaimed_and_said(cli: Cli) -> None:
    process = cli.start("exec", "-")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    process.stdin.close()
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    exit_code, stdout, stderr = cli.run("exec", "-", stdin="print(6 * 7)")
    assert (exit_code, stdout) == (0, "42\n"), stderr
    # Whether the reaper or this start came first, the person is told.
    assert "Cleaned up: " in stderr
    assert cli.run("cleanup")[:2] == (0, "Nothing was left behind.\n")


@pytest.mark.parametrize(
    ("code", "options", "exit_code", "told"),
    [
        ("1 / 0", [], 1, "ZeroDivisionError: division by zero"),
        ("while True: pass", ["--timeout", "1"], 124, "Raise --timeout."),
        ("import os; os._exit(3)", [], 9, "died: exited (3)."),
        ("x = bytearray(400 * 2**20)", ["--memory", "128m"], 9, "Raise --memory."),
        ("import sys; sys.exit('no input')", [], 1, "no input\n"),
        ("import sys; sys.exit()", [], 0, ""),
    ],
)
def test_exec_tells_how_the_code_ended(cli: Cli, code: str, options: list[str], exit_code: int, told: str) -> None:
    found, stdout, stderr = cli.run("exec", "-", *options, stdin=code)
    assert (found, stdout) == (exit_code, "")
    assert told in stderr
    if not told:
        assert stderr == ""


def test_a_flood_of_output_is_cut_in_the_middle_and_says_so(cli: Cli) -> None:
    exit_code, stdout, _ = cli.run("exec", "-", stdin="print('begin' + 'x' * 10_000_000 + 'end')")
    assert exit_code == 0
    assert stdout.startswith("begin")
    assert stdout.rstrip("\n").endswith("end")
    assert "bytes left out ...]" in stdout
    assert len(stdout) < 200_000


def test_an_unreachable_api_has_its_own_exit_code(cli: Cli) -> None:
    cli.environ["RLM_MAX_ATTEMPTS"] = "1"
    exit_code, stdout, stderr = cli.run("ask", "-q", "Q")
    assert (exit_code, stdout) == (3, "")
    assert "Error: model 'gpt-5-mini' failed (connection)" in stderr
    assert "Traceback" not in stderr


def test_a_missing_key_is_one_line_though_a_sandbox_was_on_its_way(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some text")
    del cli.environ["OPENAI_API_KEY"]
    process = cli.start("ask", "Why?", str(tmp_path / "text"), base_url="")
    _, stderr = process.communicate("")
    assert process.returncode == 2
    assert stderr.splitlines() == [stderr.strip()]
    assert "api_key" in stderr


def test_a_missing_image_names_the_remedy(cli: Cli) -> None:
    assert cli.run("cleanup")[0] == 0  # makes the state directory
    exit_code, stdout, stderr = cli.run("exec", "-", "--image", "rlm-no-such-image", stdin="1")
    assert (exit_code, stdout) == (4, "")
    assert "Build it" in stderr


def test_doctor_finds_the_engine_and_the_image(cli: Cli) -> None:
    exit_code, stdout, stderr = cli.run("doctor", "--json")
    checks = {each["name"]: each["status"] for each in json.loads(stdout)["checks"]}
    assert exit_code == 0, stderr
    assert {checks[name] for name in ("image", "confinement", "state dir", "leftovers")} == {"ok"}
    assert checks["engine"] in ("ok", "warning"), "a warning is for a release with known holes"


def test_doctor_online_asks_the_api(cli: Cli) -> None:
    with ScriptedServerThread({"any": _shout}) as server:
        stdout = cli.run("doctor", "--online", "--json", base_url=server.base_url)[1]
    assert json.loads(stdout)["checks"][-1]["status"] == "ok"
    exit_code, stdout, _ = cli.run("doctor", "--online", "--json")
    assert exit_code == 1
    assert "OPENAI_BASE_URL" in json.loads(stdout)["checks"][-1]["remedy"]
