"""What `sandbox_image/base.sh` says where there is no registry; engine and package tools are stand-ins."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "sandbox_image" / "base.sh"


def tool(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(folder: Path, pull: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    tool(folder, "docker", f'case "$1" in pull) {pull};; version) echo amd64;; import) ;; *) exit 1;; esac')
    tool(folder, "mmdebstrap", "exit 0")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "RLM_PULL_TIMEOUT_S": str(timeout_s)}
    return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=60)


def test_a_pull_that_fails_at_once_is_told_as_that(tmp_path: Path) -> None:
    ran = run(tmp_path, "echo 'Error: dial tcp: no such host' >&2; exit 1")
    assert ran.stdout == "rlm-sandbox-base:bookworm-2\n"
    assert "(tries for at most 90 s)" in ran.stderr
    assert re.search(r"the pull failed after \d s: Error: dial tcp: no such host", ran.stderr)  # a second may begin
    assert "given up" not in ran.stderr


def test_a_pull_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    ran = run(tmp_path, "exec sleep 60", timeout_s=0.1)
    assert "given up after 0.1 s" in ran.stderr
    assert ran.stdout == "rlm-sandbox-base:bookworm-2\n"


def test_what_can_be_pulled_is_the_base(tmp_path: Path) -> None:
    assert run(tmp_path, "exit 0").stdout == "python:3.11-slim-bookworm\n"
