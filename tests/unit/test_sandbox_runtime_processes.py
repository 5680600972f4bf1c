"""What gVisor leaves of a start that failed is ended: of that one container, and of no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator.sandbox.runtime_processes import end_runtime_processes

OURS, OTHER = "a" * 64, "b" * 64


def test_only_the_runtimes_processes_of_that_container_are_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as ours,
        subprocess.Popen(command, stdin=subprocess.PIPE) as gofer,
        subprocess.Popen(command, stdin=subprocess.PIPE) as shim,
        subprocess.Popen(command, stdin=subprocess.PIPE) as other,
        subprocess.Popen(command, stdin=subprocess.PIPE) as named,
    ):
        listed = {
            ours.pid: ["runsc-sandbox", "boot", OURS],
            gofer.pid: ["runsc-gofer", "gofer", "--bundle", f"/run/moby/{OURS}"],
            shim.pid: ["/usr/bin/containerd-shim-runc-v2", "-id", OURS],
            other.pid: ["runsc-sandbox", "boot", OTHER, f"--log=/x/{OURS}.log"],
            named.pid: ["vim", OURS],
        }
        for pid, arguments in listed.items():
            folder = tmp_path / str(pid)
            folder.mkdir()
            (folder / "cmdline").write_bytes("\0".join(arguments).encode())
        (tmp_path / "999999999").mkdir()  # it has ended

        assert sorted(end_runtime_processes(OURS, tmp_path)) == sorted([ours.pid, gofer.pid, shim.pid])
        assert ours.wait() == gofer.wait() == shim.wait() == -9
        assert end_runtime_processes("", tmp_path) == []
        assert other.poll() is named.poll() is None
        for process in (other, named):
            process.communicate(b"\n")
