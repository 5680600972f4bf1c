"""The agent's conversation with the host, before anything is said in it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.unit.guest_modules import agent_loop, agent_session, agent_settings


def test_an_agent_that_cannot_close_itself_to_the_code_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError(1, "prctl(PR_SET_DUMPABLE)")

    monkeypatch.setattr(agent_session, "harden", refused)
    settings = agent_settings.Settings({"RLM_ADDRESS": "unix:/unused"})
    host, guest = socket.socketpair()
    never: Any = None  # a worker that is not looked at before
    with host, guest, pytest.raises(agent_loop.Ended, match=r"cannot be closed to the code: .*PR_SET_DUMPABLE"):
        agent_session.Session(settings, guest, never)
