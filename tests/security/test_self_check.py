"""A host that does not hold what the policy says is found out before any model's code runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox import engine_docker, self_check
from orchestrator.sandbox.container_config import container_config
from orchestrator.sandbox.engine import ContainerSpec
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.policy import ENGINE_DEFAULT, Rule, load_policy
from orchestrator.sandbox.settings import SandboxSettings

pytestmark = pytest.mark.docker


@asynccontextmanager
async def weakened(
    settings: SandboxSettings, monkeypatch: pytest.MonkeyPatch, **host_config: Any
) -> AsyncIterator[DockerSandboxes]:
    """An engine that silently does something else than it is told, as old ones and wrong settings do."""

    def dishonest(spec: ContainerSpec) -> dict[str, Any]:
        config = container_config(spec)
        return config | {"NetworkDisabled": False, "HostConfig": config["HostConfig"] | host_config}

    monkeypatch.setattr(engine_docker, "container_config", dishonest)
    async with DockerSandboxes.start(settings) as sandboxes:
        yield sandboxes


async def test_this_host_holds_all_that_is_mandatory(
    no_leaks: None, sandbox_settings: SandboxSettings, runtime: str
) -> None:
    async with DockerSandboxes.start(replace(sandbox_settings, runtime=runtime)) as sandboxes:
        findings = await self_check.probe(sandboxes)
    assert findings.mandatory == ()


@pytest.mark.parametrize(
    ("host_config", "probe"),
    [
        ({"ReadonlyRootfs": False}, "P5"),
        ({"NetworkMode": "host"}, "N11"),
        ({"SecurityOpt": ["seccomp=unconfined"]}, "K14"),
        ({"SecurityOpt": ["seccomp=unconfined"]}, "P2"),
        ({"CapDrop": []}, "P3"),
    ],
    ids=["writable", "network", "seccomp", "new-privileges", "capabilities"],
)
async def test_an_engine_that_does_not_do_as_told_is_refused_by_the_probes_name(
    no_leaks: None,
    sandbox_settings: SandboxSettings,
    monkeypatch: pytest.MonkeyPatch,
    host_config: dict[str, Any],
    probe: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with weakened(sandbox_settings, monkeypatch, **host_config) as sandboxes:
        findings = await self_check.probe(sandboxes)
    with pytest.raises(SandboxUnavailable, match=rf"\b{probe} "):
        self_check.judge(findings, allow_weaker=False)
    assert any(name.startswith(probe) for name in self_check.judge(findings, allow_weaker=True))
    assert f"not so is that {probe}" in caplog.text


async def test_the_engines_own_seccomp_profile_is_weaker_too(no_leaks: None, sandbox_settings: SandboxSettings) -> None:
    policy = msgspec.structs.replace(load_policy(), seccomp=Rule(ENGINE_DEFAULT, "the control run of a test"))
    async with DockerSandboxes.start(sandbox_settings, policy=policy) as sandboxes:
        findings = await self_check.probe(sandboxes)
    assert any(name.startswith("K18") for name in findings.mandatory)
