"""A short campaign of kills at random moments; hundreds by hand: python -m tests.security.kill_campaign --kills 200."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.security.kill_campaign import run

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def test_nothing_is_left_after_kills_at_random_moments(state_dir: Path) -> None:
    interfaces = set(os.listdir("/sys/class/net"))
    report = run(8, state_dir, at_a_time=2)  # each victim, and the first at two moments
    assert "docker0" not in interfaces or "docker0" in os.listdir("/sys/class/net"), (
        "the campaign's engine took it away"
    )
    assert report.hung == 0, str(report)
    assert report.asked > 0, "no command came to its questions: the kills struck nothing"
    assert report.remains.total == 0, str(report)
