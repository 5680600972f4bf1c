"""A short campaign of kills at random moments; hundreds by hand: python -m tests.security.kill_campaign --kills 200."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.kill_campaign import run

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def test_nothing_is_left_after_kills_at_random_moments(state_dir: Path) -> None:
    report = run(7, state_dir, at_a_time=2)
    assert report.hung == 0, str(report)
    assert report.remains.total == 0, str(report)
