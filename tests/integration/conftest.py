"""Real containers, and a check after each test that nothing of it is left."""

from __future__ import annotations

import pytest

from tests.docker_fixtures import docker_sandboxes, no_leaks, sandbox_image, sandbox_settings, state_dir

__all__ = ["docker_sandboxes", "no_leaks", "sandbox_image", "sandbox_settings", "state_dir"]


@pytest.fixture(autouse=True)
def _leak_check(no_leaks: None) -> None:
    """Applies `no_leaks` to every test of this folder."""
