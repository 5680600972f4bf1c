"""A host that does not hold what the policy says is found out before any model's code runs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
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

Change = Callable[[dict[str, Any]], dict[str, Any]]


UNCONFINED = ["no-new-privileges:true", "seccomp=unconfined"]
_NOT_HARDENED = (
    "import runpy, sys; sys.path.insert(0, '/opt/rlm/agent'); import agent_processes; "
    "agent_processes.harden = lambda: None; runpy.run_path('/opt/rlm/agent/main.py', run_name='__main__')"
)
_OPEN_TMP = {"/tmp": "rw,nosuid,nodev,mode=1777"}


def _ulimits(**other: int) -> Change:
    """The policy's own, with these instead."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        kept = [each for each in config["HostConfig"]["Ulimits"] if each["Name"] not in other]
        return {"Ulimits": kept + [{"Name": name, "Soft": value, "Hard": value} for name, value in other.items()]}

    return change


def _mounting(**change: Any) -> Change:
    return lambda config: {"Mounts": [config["HostConfig"]["Mounts"][0] | change]}


def _host(**change: Any) -> Change:
    return lambda _: change


def _engine_socket(config: dict[str, Any]) -> dict[str, Any]:
    socket = {"Type": "bind", "Source": "/var/run/docker.sock", "Target": "/var/run/docker.sock"}
    return {"Mounts": [*config["HostConfig"]["Mounts"], socket]}


# By probe, as it is named: what an engine does otherwise than told, of the host's part of the configuration and of the
# container's own; and whether gVisor has the weakness too.
WEAKER: dict[str, tuple[Change, dict[str, Any], bool]] = {
    "P4 the code has a user of its own, and no group beside it": (_host(), {"User": "0:0"}, True),
    "P3 no capability is held": (_host(CapDrop=[]), {}, True),
    "P2 no new privileges can be had": (_host(SecurityOpt=["seccomp=unconfined"]), {}, False),
    "P5 the root file system is read-only": (_host(ReadonlyRootfs=False), {}, True),
    "P5 what the policy closes is closed": (_host(Tmpfs=_OPEN_TMP), {}, True),
    "N13 the socket's directory is read-only": (_mounting(ReadOnly=False), {}, True),
    "N11 there is no interface but loopback": (_host(NetworkMode="bridge"), {}, False),
    "N2 there is no way out": (_host(NetworkMode="bridge"), {}, False),
    "P7 there is no engine's socket": (_engine_socket, {}, True),
    "K3 no user namespace can be had, in which code could mount": (_host(SecurityOpt=UNCONFINED), {}, False),
    "K29 the host's switches cannot be written": (_host(ReadonlyPaths=[]), {}, False),
    "K7 the agent's memory and environment cannot be read": (
        _host(),
        {"Entrypoint": ["/opt/rlm/python", "-I", "-S", "-c", _NOT_HARDENED]},
        True,
    ),
    "C25 no limit can be set on the agent": (_host(SecurityOpt=UNCONFINED), {}, True),
    "K18 a socket family that nobody needs is not there": (_host(SecurityOpt=UNCONFINED), {}, False),
    "K14 io_uring is not there": (_host(SecurityOpt=UNCONFINED), {}, False),
    "P11 no key is in the environment": (_host(), {"Env": ["OPENAI_API_KEY=sk-inside"]}, True),
    "R3 memory is limited": (_host(Memory=0, MemorySwap=0), {}, True),
    "R1 processes are limited": (_host(PidsLimit=0), {}, False),
    "R20 processors are limited": (_host(NanoCpus=0), {}, False),
    "R14 open files are limited": (_ulimits(nofile=4096), {}, True),
    "R40 pending signals and queues are limited": (_ulimits(sigpending=9999), {}, True),
    "R8 /tmp is limited in size": (
        lambda config: {"Tmpfs": config["HostConfig"]["Tmpfs"] | _OPEN_TMP},
        {},
        False,  # this gVisor gives a tmpfs without a size none
    ),
    "K38 what tells of the host is masked": (_host(MaskedPaths=[]), {}, False),
}
# It takes a host with swap on which the engine cannot limit it.
UNSHOWN = {"R3 memory cannot be swapped out, to the neighbors' cost"}


@asynccontextmanager
async def weakened(
    settings: SandboxSettings, monkeypatch: pytest.MonkeyPatch, change: Change, top: dict[str, Any]
) -> AsyncIterator[DockerSandboxes]:
    """An engine that silently does something else than it is told, as old ones and wrong settings do."""

    def dishonest(spec: ContainerSpec) -> dict[str, Any]:
        config = container_config(spec)
        host = config["HostConfig"] | change(config)
        own = {name: config[name] + value if name == "Env" else value for name, value in top.items()}
        return config | {"NetworkDisabled": host["NetworkMode"] == "none", "HostConfig": host} | own

    monkeypatch.setattr(engine_docker, "container_config", dishonest)
    async with DockerSandboxes.start(settings) as sandboxes:
        yield sandboxes


async def test_this_host_holds_all_that_is_mandatory(
    no_leaks: None, sandbox_settings: SandboxSettings, runtime: str
) -> None:
    async with DockerSandboxes.start(replace(sandbox_settings, runtime=runtime)) as sandboxes:
        findings = await self_check.probe(sandboxes)
        promised = await sandboxes.promised()
    assert findings.mandatory == ()
    assert promised.gvisor is (runtime == "runsc")
    # Known of gVisor, and told: see docs/security.md.
    assert {name.split()[0] for name in findings.other} == ({"K7", "C25"} if promised.gvisor else set())


def test_each_probe_has_a_weakness_that_it_must_find() -> None:
    assert set(WEAKER) | UNSHOWN == {each.name for each in self_check.PROBES}


@pytest.mark.parametrize("name", WEAKER, ids=[name.replace(" ", "-")[:40] for name in WEAKER])
async def test_a_probe_finds_the_door_open_that_is_its_own(
    no_leaks: None, sandbox_settings: SandboxSettings, monkeypatch: pytest.MonkeyPatch, name: str, runtime: str
) -> None:
    change, top, also_in_gvisor = WEAKER[name]
    if runtime == "runsc" and not also_in_gvisor:
        pytest.skip("gVisor does not have this weakness, or the probe is not tried there")
    settings = replace(sandbox_settings, runtime=runtime)
    async with weakened(settings, monkeypatch, change, top) as sandboxes:
        findings = await self_check.probe(sandboxes)
    assert name in findings.weaknesses


@pytest.mark.parametrize(
    "name", ["N11 there is no interface but loopback", "K3 no user namespace can be had, in which code could mount"]
)
async def test_an_engine_that_does_not_do_as_told_is_refused_by_the_probes_name(
    no_leaks: None,
    sandbox_settings: SandboxSettings,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change, top, _ = WEAKER[name]
    async with weakened(sandbox_settings, monkeypatch, change, top) as sandboxes:
        findings = await self_check.probe(sandboxes)
    with pytest.raises(SandboxUnavailable, match=re.escape(name)):
        self_check.judge(findings, allow_weaker=False)
    assert name in self_check.judge(findings, allow_weaker=True)
    assert f"not so is that {name}" in caplog.text


async def test_the_engines_own_seccomp_profile_is_weaker_too(no_leaks: None, sandbox_settings: SandboxSettings) -> None:
    policy = msgspec.structs.replace(load_policy(), seccomp=Rule(ENGINE_DEFAULT, "the control run of a test"))
    async with DockerSandboxes.start(sandbox_settings, policy=policy) as sandboxes:
        findings = await self_check.probe(sandboxes)
    assert any(name.startswith("K18") for name in findings.mandatory)
