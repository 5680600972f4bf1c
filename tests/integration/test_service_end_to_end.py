"""`rlm serve` as a process, real containers behind it, and callers from the command and from Python."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.client.calls import Client
from orchestrator.client.library import RLM, Sandbox, close
from orchestrator.errors import ServiceFailed, ServiceFailure
from orchestrator.events import CellPrinted, ModelTextStreamed, Record
from orchestrator.testing.scripted import ChatRequest, Hang, Outcome, Reply, ScriptedServerThread, sequence
from orchestrator.views import RunState
from tests.integration.e2e_command import environment, started
from tests.integration.e2e_world import reply

pytestmark = pytest.mark.docker

_ROOT = [reply("answers = llm_batch(['a', 'b'])"), reply("FINAL('+'.join(answers))")]


def _shout(request: ChatRequest) -> Outcome:
    return Reply(request.last_user.upper())


def _hang(request: ChatRequest) -> Outcome:
    return Hang()


@contextmanager
def _served(environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers; its socket is the state directory's."""
    with started("serve", "--drain-grace", "0", environ=environ, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"Serving on"):
                break
        else:
            raise AssertionError("the server ended before it served")
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate()
            assert process.returncode == 0, stderr.decode()


def _address() -> str:
    return f"unix:{os.environ['RLM_STATE_DIR']}/rlm.sock"


def _command(environ: dict[str, str], *arguments: str) -> tuple[int, str]:
    with started(*arguments, environ=environ, stdout=subprocess.PIPE) as process:
        stdout, _ = process.communicate()
        return process.returncode, stdout.decode()


async def _records(client: Client, run_id: str, after_seq: int = 0) -> list[Record]:
    return [record async for record in client.watch(run_id, after_seq)]


async def test_a_run_is_started_here_watched_there_and_kept_over_a_restart(state_dir: Path) -> None:
    with ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _shout}) as models:
        environ = environment(models.base_url, 1)
        async with Client(_address()) as client:
            with _served(environ):
                view = await client.start("Which?", "x" * 100)
                live = await _records(client, view.run_id)
                found = await client.get(view.run_id)
                assert (found.state, found.answer) == (RunState.SUCCEEDED, "A+B"), found.problem
                code, stdout = await asyncio.to_thread(_command, environ, "watch", view.run_id)
                assert (code, stdout) == (0, "A+B\n")
                watch = client.watch(view.run_id)
                half = [await anext(watch) for _ in range(5)]
            with _served(environ):
                rest = await _records(client, view.run_id, half[-1].seq)
                kept = [each for each in live if not isinstance(each.event, ModelTextStreamed | CellPrinted)]
                assert half + rest == kept
                assert await client.get(view.run_id) == found
                code, stdout = await asyncio.to_thread(_command, environ, "runs", "--json")
                assert [each["run_id"] for each in json.loads(stdout)["runs"]] == [view.run_id]
                code, stdout = await asyncio.to_thread(_command, environ, "show", "--json", view.run_id)
                assert json.loads(stdout)["answer"] == "A+B"
            # Without a server, from what it has left.
            assert await asyncio.to_thread(_command, environ, "show", "--json", view.run_id) == (code, stdout)


async def test_a_run_is_cancelled_from_elsewhere(state_dir: Path) -> None:
    with ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _hang}) as models:
        environ = environment(models.base_url, 1)
        with _served(environ):
            asked: asyncio.Queue[str] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def see(record: Record) -> None:
                loop.call_soon_threadsafe(asked.put_nowait, type(record.event).__name__)

            rlm = RLM(server=_address(), sinks=[see])
            answering = asyncio.ensure_future(rlm.arun(query="Which?"))
            while await asked.get() != "BatchStarted":
                pass
            async with Client(_address()) as client:
                (view,) = (await client.list()).items
                code, stdout = await asyncio.to_thread(_command, environ, "cancel", view.run_id)
                assert (code, stdout) == (0, f"{view.run_id} cancelled\n")
            with pytest.raises(ServiceFailed) as caught:
                await answering
            assert caught.value.kind is ServiceFailure.RUN_STOPPED
            await asyncio.to_thread(close)


def test_the_library_s_interface_against_a_server(state_dir: Path) -> None:
    with ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _shout}) as models:
        environ = environment(models.base_url, 1)
        with _served(environ):
            assert RLM(server=_address()).completion({"a": 1}, "Which?") == "A+B"
            with Sandbox({"a": [1, 2]}, server=_address()) as sandbox:
                sandbox.write_file_sync("in/data.txt", b"hello")
                result = sandbox.run_sync("print(context['a'][1], open('/tmp/in/data.txt').read())")
                assert result.stdout.text == "2 hello\n"
            assert _command(environ, "ask", "Which?", "--server", _address()) == (0, "A+B\n")
            script = state_dir / "script.py"
            script.write_text("print(6 * 7)")
            assert _command(environ, "exec", str(script), "--server", _address()) == (0, "42\n")
            script.unlink()
            close()


async def test_a_server_that_is_told_to_stop_cancels_what_does_not_end(state_dir: Path) -> None:
    with ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _hang}) as models:
        environ = environment(models.base_url, 1)
        async with Client(_address(), retry_s=60.0) as client:
            with _served(environ) as server:
                view = await client.start("Which?")
                async for record in client.watch(view.run_id):
                    if type(record.event).__name__ == "BatchStarted":
                        break
                server.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(server.wait) == 0
            with _served(environ):
                assert (await client.get(view.run_id)).state is RunState.CANCELLED
