"""A sandbox through Podman's socket, which speaks Docker's protocol and differs in a few answers."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.build import open_orchestrator
from orchestrator.config import Config
from orchestrator.values import CellStatus
from tests.docker_fixtures import IMAGE

pytestmark = pytest.mark.docker


@pytest.fixture
def podman(state_dir: Path, sandbox_image: str) -> Iterator[str]:
    """The address of a service with a storage of its own, in which the sandboxes' image is."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed (Debian, Ubuntu: apt-get install podman)")
    if Path("/proc/self/uid_map").read_text().split()[:2] != ["0", "0"] or not _is_root():
        pytest.skip("podman is tried as root only")
    folder = state_dir.with_name(f"{state_dir.name}-podman")
    folder.mkdir()
    command = ["podman", f"--root={folder}/root", f"--runroot={folder}/run", "--cgroup-manager=cgroupfs"]
    # A listening socket that it inherits: whoever connects waits until it is there.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "s"))
    listener.listen()
    script = 'exec 3<&"$0"; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" system service --time=0'
    run = ["bash", "-c", script, str(listener.fileno()), *command]
    with subprocess.Popen(run, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL) as service:
        try:
            with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE) as saving:
                subprocess.run([*command, "load", "--quiet"], stdin=saving.stdout, check=True, capture_output=True)
            yield f"unix://{folder}/s"
        finally:
            subprocess.run([*command, "rm", "--all", "--force"], capture_output=True)
            service.terminate()
            service.wait()
            listener.close()
            subprocess.run([*command, "rmi", "--all", "--force"], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


def _is_root() -> bool:
    return Path("/proc/self").stat().st_uid == 0


async def test_a_cell_runs_in_a_sandbox_of_podman(
    podman: str, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.load({"image": f"localhost/{IMAGE}", "state_dir": str(state_dir)}, environ={}, dotenv=None)
    with monkeypatch.context() as patch:  # what looks for leaks afterwards asks Docker
        patch.setenv("DOCKER_HOST", podman)
        async with open_orchestrator(config) as orchestrator, orchestrator.sandbox([1, 2, 3]) as sandbox:
            first = await sandbox.run("total = sum(context)\nimport socket\nprint(total)")
            assert (first.status, first.stdout.text) == (CellStatus.OK, "6\n")
            reached = await sandbox.run("socket.create_connection(('192.0.2.1', 80), 1)")
            assert reached.status is CellStatus.ERROR
            assert (await sandbox.run("print(total + 1)")).stdout.text == "7\n"
