"""The API's key is in the requests to the API, and nowhere else: wherever it could come to lie, it is looked for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client.calls import Client
from orchestrator.testing.scripted import ApiError, ChatRequest, Outcome, ScriptedServerThread, sequence
from orchestrator.views import RunState
from tests.integration.e2e_command import environment, started
from tests.integration.e2e_world import reply, world

pytestmark = pytest.mark.docker

# Not like any vendor's keys, so that nothing but knowing it finds it.
KEY = "Quartz7Heron4Velvet9Lantern2Mosaic"
_ROOT = [
    reply("try: print(llm_query('a'))\nexcept Exception as error: print(repr(error), error.__dict__)"),
    reply("FINAL('done')"),
]
# The needle comes in two halves, so that the code that looks for it is not what it finds.
_LOOK = """
import glob, os
needle = ({head!r} + {tail!r}).encode()
found = [name for name, value in os.environ.items() if needle in value.encode()]
places = glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline")
for root, folders, files in os.walk("/"):
    folders[:] = [each for each in folders if os.path.join(root, each) not in ("/proc", "/sys", "/dev")]
    places += [os.path.join(root, each) for each in files]
for place in places:
    try:
        if os.path.isfile(place) and needle in open(place, "rb").read(): found.append(place)
    except OSError: pass
print(found, len(places) > 100)
"""
LOOK = _LOOK.format(head=KEY[:9], tail=KEY[9:])


def _echoes(request: ChatRequest) -> Outcome:
    """As proxies and some servers do."""
    assert KEY in request.headers["authorization"]
    return ApiError(400, f"Bad request with Authorization: Bearer {KEY} ({KEY[:20]}...)")


def _environment(base_url: str) -> dict[str, str]:
    return environment(base_url, 1) | {"OPENAI_API_KEY": KEY}


def _without_key(text: str | bytes, where: str) -> None:
    """Nor a beginning of it that would tell."""
    data = text.encode() if isinstance(text, str) else text
    assert KEY[:20].encode() not in data, f"the key is in {where}"


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def _command_lines() -> Iterator[tuple[Path, bytes]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path, path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked


def _fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
        return body


async def test_P11_the_key_is_not_in_a_sandbox_nor_in_what_its_code_is_told(no_leaks: None) -> None:
    plant = f"open('/tmp/planted', 'w').write({KEY[:9]!r} + {KEY[9:]!r})"
    replies = sequence([_ROOT[0], reply(LOOK), reply(f"{plant}\n{LOOK}"), _ROOT[1]])
    async with world({"depth-0": replies, "leaf": _echoes}, api_key=KEY) as w:
        assert (await w.ask()).answer == "done"
        told = [json.dumps(request.body) for request in w.server.requests if request.model == "depth-0"]
    assert len(told) == 4
    assert "[] True" in told[2]
    assert "['/tmp/planted'] True" in told[3], "the look would not have found it"
    for text in told:
        _without_key(text, "what the model is told")


@pytest.mark.parametrize("fails", ["leaf", "depth-0"])
def test_the_key_is_not_in_what_ask_says_logs_or_records(no_leaks: None, tmp_path: Path, fails: str) -> None:
    recording = tmp_path / "run.jsonl"
    root = sequence(_ROOT) if fails == "leaf" else _echoes
    with ScriptedServerThread({"depth-0": root, "leaf": _echoes}) as models:
        command = ("ask", "Q", "-vv", "--record", str(recording))
        environ = _environment(models.base_url) | {"RLM_TRACEBACK": "1"}
        with started(*command, environ=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            stdout, stderr = process.communicate()
    assert (process.returncode == 0) is (fails == "leaf")
    # Its words come through, without the key.
    assert b"Bad request" in (recording.read_bytes() if fails == "leaf" else stderr)
    for text, where in ((stdout, "stdout"), (stderr, "stderr"), (recording.read_bytes(), "the recording")):
        _without_key(text, where)


async def test_the_key_is_not_in_what_serve_logs_stores_or_shows(no_leaks: None, state_dir: Path) -> None:
    command = ("serve", "--drain-grace", "0", "--metrics", "0", "--log-format", "json", "--log-level", "debug")
    with (
        ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _echoes}) as models,
        started(*command, environ=_environment(models.base_url), stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        said, metrics = b"", ""
        for line in process.stderr:
            said += line
            if line.startswith(b"Metrics at "):
                metrics = line.removeprefix(b"Metrics at ").decode().strip()
                break
        async with Client(f"unix:{os.environ['RLM_STATE_DIR']}/rlm.sock") as client:
            view = await client.start("Which?", "x" * 100)
            events = [record async for record in client.watch(view.run_id)]
            found = await client.get(view.run_id)
        assert found.state is RunState.SUCCEEDED, found.problem
        _without_key(await asyncio.to_thread(_fetched, metrics), "the metrics")
        for path, line in _command_lines():
            _without_key(line, f"the command line {path}")
        kept = dict(_files(state_dir))
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate()
    assert process.returncode == 0
    _without_key(said + rest, "the log")
    _without_key(repr(events) + repr(found), "what clients see")
    assert any(path.name == "rlm.db" for path in kept)
    assert any(b"llm_query" in data for data in kept.values()), "the run was not stored"
    for path, data in [*kept.items(), *_files(state_dir)]:
        _without_key(data, str(path))


@pytest.mark.parametrize("command", [("config",), ("config", "--json"), ("doctor", "--json"), ("doctor",)])
def test_the_key_is_not_in_what_describes_the_setting(no_leaks: None, command: tuple[str, ...]) -> None:
    with ScriptedServerThread({"depth-0": _echoes}) as models:
        environ = _environment(models.base_url)
        with started(*command, environ=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            stdout, stderr = process.communicate()
    assert stdout
    _without_key(stdout + stderr, " ".join(command))
