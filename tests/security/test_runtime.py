"""A runtime that was asked for and is not there is an error with its remedy, never another runtime."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings

pytestmark = pytest.mark.docker


async def test_a_missing_runtime_is_refused_and_not_downgraded(
    no_leaks: None, sandbox_settings: SandboxSettings
) -> None:
    async with DockerSandboxes.start(replace(sandbox_settings, runtime="no-such-runtime")) as sandboxes:
        with pytest.raises(SandboxUnavailable, match=r"runtime.*make gvisor"):
            async with sandboxes.open(None, None):
                pass
