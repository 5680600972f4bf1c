from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.sandbox.engine import OwnedContainer
from orchestrator.sandbox.state_dir import open_state_dir, owner_record
from tests.unit.cli_fakes import FakeEngine, run_cli

_HEAVY = ("openai", "docker", "grpc", "rich", "requests", "dotenv", "httpx")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    ran = _python(
        "import sys; sys.argv = ['rlm', '--help']\n"
        "from orchestrator.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('IMPORTED', [name for name in {_HEAVY!r} if name in sys.modules])"
    )
    assert ran.stdout.splitlines()[-1] == "IMPORTED []"


@pytest.mark.parametrize("name", ["ask", "exec", "show", "doctor", "config", "image", "cleanup"])
def test_every_command_is_listed_and_has_help(name: str) -> None:
    assert f"  {name} " in run_cli("--help").stdout
    ran = run_cli(name, "--help")
    assert (ran.exit_code, ran.stdout.startswith("Usage: ")) == (0, True)


def test_an_unknown_command_is_a_usage_error() -> None:
    ran = run_cli("aks")
    assert ran.exit_code == 2
    assert "No such command" in ran.stderr


def test_a_second_ctrl_c_ends_at_once() -> None:
    ran = _python(
        "import asyncio, os, signal\n"
        "from orchestrator.cli.interrupts import run\n"
        "async def work():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    try:\n"
        "        await asyncio.Event().wait()\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        await asyncio.Event().wait()\n"
        "run(work)\n"
    )
    assert ran.returncode == 130
    assert "Stopped at once. `rlm cleanup` removes what is left." in ran.stderr


def test_config_shows_value_and_origin_but_never_a_key() -> None:
    environ = {
        "OPENAI_API_KEY": "sk-very-secret",
        "RLM_MODEL": "tiny",
        "OPENAI_BASE_URL": "http://user:pass@host/v1",
        "RLM_ENDPOINTS": '{"tiny": {"base_url": "http://h/v1", "api_key": "sk-other-secret"}}',
    }
    ran = run_cli("config", environ=environ)
    assert ran.exit_code == 0
    assert "(from the variable RLM_MODEL)" in ran.stdout
    as_json = run_cli("config", "--json", environ=environ)
    settings = {each["name"]: each for each in json.loads(as_json.stdout)["settings"]}
    assert settings["model"]["value"] == "tiny"
    assert settings["max_depth"]["origin"] == "default"
    for output in (ran.stdout, as_json.stdout):
        assert "secret" not in output
        assert "pass@" not in output


def test_a_wrong_setting_is_named() -> None:
    ran = run_cli("config", environ={"RLM_MAX_DEPTH": "many"})
    assert ran.exit_code == 2
    assert "max_depth" in ran.stderr


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "s"


def _doctor(state: Path, engine: FakeEngine, **environ: str) -> tuple[int, dict[str, dict[str, str]]]:
    ran = run_cli("doctor", "--json", engine=engine, environ={"RLM_STATE_DIR": str(state), **environ})
    found = json.loads(ran.stdout)
    assert found["ok"] is (ran.exit_code == 0)
    return ran.exit_code, {each["name"]: each for each in found["checks"]}


def test_doctor_is_content_with_a_good_host(state: Path) -> None:
    exit_code, checks = _doctor(state, FakeEngine(), OPENAI_API_KEY="sk-secret")
    assert exit_code == 0
    assert checks["engine"]["text"] == "Docker 29.5.3, API 1.52, cgroup v2"
    assert "sk-secret" not in str(checks)
    text = run_cli("doctor", environ={"RLM_STATE_DIR": str(state), "OPENAI_API_KEY": "sk-secret"}).stdout
    assert text.endswith("Ready.\n")
    assert "sk-secret" not in text


def test_doctor_names_the_fix_of_each_failure(state: Path) -> None:
    exit_code, checks = _doctor(state, FakeEngine(image_id=None), RLM_RUNTIME="runsc")
    assert exit_code == 1
    failed = {name: each["remedy"] for name, each in checks.items() if each["status"] == "failed"}
    assert set(failed) == {"image", "runtime", "api key"}
    assert failed["image"] == "Build it: rlm image build"
    assert all(failed.values())


def test_doctor_goes_on_without_an_engine(state: Path) -> None:
    exit_code, checks = _doctor(state, FakeEngine(info_=None), OPENAI_API_KEY="k")
    assert exit_code == 1
    assert (checks["engine"]["remedy"], checks["api key"]["status"]) == ("Start it.", "ok")


def test_doctor_stops_at_a_wrong_setting() -> None:
    ran = run_cli("doctor", environ={"RLM_MAX_DEPTH": "many"})
    assert ran.exit_code == 1
    assert "✗ settings" in ran.stdout


def test_cleanup_removes_what_the_dead_left_and_nothing_else(state: Path) -> None:
    with owner_record(open_state_dir(state)) as living:
        engine = FakeEngine(
            containers=[OwnedContainer("rlm-dead", "aaaaaaaa", True), OwnedContainer("rlm-live", living, True)]
        )
        exit_code, checks = _doctor(state, engine, OPENAI_API_KEY="k")
        assert exit_code == 0
        assert checks["leftovers"]["text"] == "1 sandbox of live processes, 1 of dead ones"
        assert "rlm cleanup" in checks["leftovers"]["remedy"]
        ran = run_cli("cleanup", engine=engine, environ={"RLM_STATE_DIR": str(state)})
        assert (ran.exit_code, engine.destroyed) == (0, ["rlm-dead"])
        assert "container rlm-dead" in ran.stdout
        ran = run_cli("cleanup", engine=engine, environ={"RLM_STATE_DIR": str(state)})
        assert ran.stdout == "Nothing was left behind.\n"
