"""Asks as the agent reads them, of a worker that need not be its own code any more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.guest_modules import agent_asks, guest_frames

ASK: dict[str, Any] = {
    "id": 1,
    "max_concurrent": 1,
    "stop_at_failure": True,
    "recursive": None,
    "questions": [[1, "", 0]],
}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"max_concurrent": 0},
        {"max_concurrent": 1 << 31},
        {"stop_at_failure": 1},
        {"recursive": "yes"},
        {"questions": []},
        {"questions": [[2, "", 0]]},
        {"questions": [[1, "picture", 0]]},
        {"questions": [[1, ["text"], 0]]},
    ],
)
def test_a_malformed_ask_is_asked_of_nobody(change: dict[str, Any]) -> None:
    def begin(*_: object) -> Any:
        raise AssertionError("it was asked")

    asks = agent_asks.Asks(begin, reply=begin, changed=begin)
    with pytest.raises(AssertionError):
        asks.start(ASK, b"?")
    with pytest.raises((guest_frames.FrameError, KeyError, TypeError, ValueError)):
        asks.start(ASK | change, b"?")
