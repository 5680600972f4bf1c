"""Ctrl-C on the terminal of a running `rlm ask`: exit status 130, nothing left, nothing in flight."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import termios
import threading
from pathlib import Path

import pytest

from orchestrator.testing.scripted import ScriptedServerThread
from orchestrator.testing.scripted.record import RequestState
from tests.integration.e2e_command import environment, started
from tests.integration.e2e_world import containers_of
from tests.integration.test_kill import HANGING

pytestmark = pytest.mark.docker

CTRL_C = b"\x03"


def test_ctrl_c_stops_a_run_of_two_levels_cleanly(state_dir: Path) -> None:
    with ScriptedServerThread(HANGING) as server:
        master, terminal = pty.openpty()
        options = {
            "stdin": terminal,
            "stdout": terminal,
            "stderr": terminal,
            "start_new_session": True,
            "preexec_fn": lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
        }
        with started("ask", "Why?", environ=environment(server.base_url, 2), **options) as process:
            os.close(terminal)
            shown: list[bytes] = []
            reader = threading.Thread(target=_read, args=(master, shown))
            reader.start()
            server.wait_for(lambda log: log.in_flight == 6, timeout_s=60)
            os.write(master, CTRL_C)
            assert process.wait() == 130
            reader.join()
        os.close(master)
        assert asyncio.run(containers_of(state_dir)) == []
        server.wait_for(lambda log: log.in_flight == 0)
        assert server.count(RequestState.CANCELLED) == 6
    assert b"stopping" in b"".join(shown).lower()


def _read(master: int, shown: list[bytes]) -> None:
    """A terminal that nobody reads would block who writes to it."""
    while True:
        try:
            shown.append(os.read(master, 65536))
        except OSError:  # EIO: nobody has it open for writing any more
            return
