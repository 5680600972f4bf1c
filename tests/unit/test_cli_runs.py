"""`rlm runs`, `watch` and `cancel` when no server answers: what the last one has left, or how to start one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.cli.exit_codes import ExitCode
from orchestrator.store.database import Store
from orchestrator.store.rows import StoredRun
from orchestrator.values import Ending
from orchestrator.views import RunProblem, RunState
from tests.unit import store_samples as samples
from tests.unit.cli_fakes import run_cli


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory in which a server was killed: a run was under way."""
    now = time.time()
    with Store.open(tmp_path / "store" / "rlm.db") as store:
        store.put_run(samples.run(1, query="Who?\x1b[2J", started_at=now - 7200, labels={"team": "a"}))
        store.put_run(samples.run(2, query="When?", started_at=now - 60, session_id="ses_1"))
        store.put_run(samples.run(3, query="Where?", started_at=now))
        store.append("run_1", samples.records(samples.started(), samples.ended()))
        ended = samples.run(1, query="Who?\x1b[2J", started_at=now - 7200, labels={"team": "a"})
        store.update_run(_changed(ended, state=RunState.SUCCEEDED, answer="42", ending=Ending.FINAL, ended_at=now))
        failed = samples.run(2, query="When?", started_at=now - 60, session_id="ses_1")
        problem = RunProblem("MODEL_FAILED", "the model failed.")
        store.update_run(_changed(failed, state=RunState.FAILED, problem=problem, ended_at=now))
    return tmp_path


def _changed(run: StoredRun, **changes: object) -> StoredRun:
    return msgspec.structs.replace(run, **changes)


def _environ(state: Path) -> dict[str, str]:
    return {"RLM_STATE_DIR": str(state)}


def _listed(state: Path, *options: str) -> list[str]:
    ran = run_cli("runs", "--json", *options, environ=_environ(state))
    assert (ran.exit_code, ran.stderr) == (0, "")
    return [each["run_id"] for each in json.loads(ran.stdout)["runs"]]


def test_the_runs_that_a_server_has_left_are_listed(state: Path) -> None:
    ran = run_cli("runs", environ=_environ(state))
    assert (ran.exit_code, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run_3", "run_2", "run_1"]
    assert [line.split()[3] for line in lines] == ["interrupted", "failed", "succeeded"]
    assert "\x1b" not in ran.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--state", "failed", "--state", "succeeded"), ["run_2", "run_1"]),
        (("--label", "team=a"), ["run_1"]),
        (("--session", "ses_1"), ["run_2"]),
        (("--since", "1"), ["run_3", "run_2"]),
        (("--limit", "1"), ["run_3"]),
    ],
)
def test_the_options_choose_as_they_do_on_a_server(state: Path, options: tuple[str, ...], expected: list[str]) -> None:
    assert _listed(state, *options) == expected


def test_json_says_all_of_a_run_and_whether_there_are_more(state: Path) -> None:
    found = json.loads(run_cli("runs", "--json", "--limit", "2", environ=_environ(state)).stdout)
    assert found["more"] is True
    assert found["runs"][1]["error"] == {"reason": "MODEL_FAILED", "message": "the model failed."}
    assert found["runs"][0]["state"] == "interrupted"


@pytest.fixture
def stale_socket(state: Path) -> Iterator[None]:
    """What a killed server leaves: a socket's file that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(state / "rlm.sock"))
    yield
    (state / "rlm.sock").unlink()


@pytest.mark.usefixtures("stale_socket")
def test_a_socket_that_nobody_listens_on_is_no_server(state: Path) -> None:
    assert _listed(state, "--limit", "1") == ["run_3"]


def test_a_recorded_run_is_shown_without_a_server(state: Path) -> None:
    ran = run_cli("show", "--json", "run_1", environ=_environ(state))
    assert (ran.exit_code, json.loads(ran.stdout)["answer"]) == (0, "42")
    assert run_cli("show", "run_9", environ=_environ(state)).exit_code == ExitCode.NOT_FOUND


@pytest.mark.parametrize("arguments", [("runs",), ("watch", "run_1"), ("cancel", "run_1"), ("show", "run_1")])
def test_no_server_and_no_store_says_how_to_start_one(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = run_cli(*arguments, environ=_environ(tmp_path))
    assert ran.exit_code == ExitCode.SERVICE_FAILED
    assert ran.stderr == f"Error: no server answers at unix:{tmp_path}/rlm.sock. Start one: rlm serve\n"
    assert ran.stdout == ""


@pytest.mark.parametrize("arguments", [("runs",), ("watch", "run_1"), ("cancel", "run_1")])
def test_a_server_that_is_named_is_never_replaced_by_the_store(state: Path, arguments: tuple[str, ...]) -> None:
    ran = run_cli(*arguments, "--server", f"unix:{state}/other.sock", environ=_environ(state))
    assert ran.exit_code == ExitCode.SERVICE_FAILED
    assert ran.stderr == f"Error: no server answers at unix:{state}/other.sock. Start one: rlm serve\n"


def test_a_server_that_listens_elsewhere_is_to_be_named(state: Path) -> None:
    with Store.open(state / "store" / "rlm.db"):
        ran = run_cli("runs", environ=_environ(state))
    assert ran.exit_code == ExitCode.STORE_FAILED
    assert "--server ADDRESS" in ran.stderr


def test_a_run_is_written_to_a_file_and_taken_in_elsewhere(state: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "run.jsonl", tmp_path / "other"
    ran = run_cli("show", "run_1", "--export", str(file), environ=_environ(state))
    assert (ran.exit_code, ran.stderr) == (0, "")
    with Store.open(other / "store" / "rlm.db"):
        pass
    ran = run_cli("import", str(file), "--json", environ=_environ(other))
    assert (ran.exit_code, ran.stderr) == (0, "")
    found = json.loads(ran.stdout)
    assert (found["run_id"], found["state"], found["principal"]) == ("run_1", "succeeded", "admin")
    assert _listed(other) == ["run_1"]
    shown = [run_cli("show", "run_1", environ=_environ(each)).stdout for each in (state, other)]
    assert shown[0] == shown[1] != ""
    again = run_cli("import", str(file), environ=_environ(other))
    assert again.exit_code == ExitCode.USAGE
    assert "already" in again.stderr
    assert run_cli("show", "run_9", "--export", str(file), environ=_environ(state)).exit_code == ExitCode.NOT_FOUND
    assert run_cli("show", str(file), "--export", str(file), environ=_environ(state)).exit_code == ExitCode.USAGE
    file.write_text("{}")
    assert run_cli("import", str(file), environ=_environ(other)).exit_code == ExitCode.NOT_REPLAYABLE
