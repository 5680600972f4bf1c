"""The CIS Docker Benchmark, section 5 (container runtime), against a live sandbox as the engine describes it.

Each item passes, or says why it does not apply.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.policy import load_policy

pytestmark = pytest.mark.docker

Container = dict[str, Any]
_SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/var/run", "/run", "/var/lib/docker")


def host(container: Container, name: str) -> Any:
    return container["HostConfig"][name]


ITEMS: dict[str, Callable[[Container], bool]] = {
    "5.3 capabilities restricted": lambda c: host(c, "CapDrop") == ["ALL"] and not host(c, "CapAdd"),
    "5.4 not privileged": lambda c: host(c, "Privileged") is False,
    "5.5 no sensitive host directories": lambda c: not any(m["Source"] in _SENSITIVE for m in c["Mounts"]),
    "5.7 no privileged ports": lambda c: not host(c, "PortBindings"),
    "5.8 only needed ports are open": lambda c: not c["NetworkSettings"]["Ports"],
    "5.9 not the host's network": lambda c: host(c, "NetworkMode") == "none",
    "5.10 memory is limited": lambda c: host(c, "Memory") == host(c, "MemorySwap") > 0,
    "5.11 CPU priority is set": lambda c: 0 < host(c, "CpuShares") < 1024 and host(c, "NanoCpus") > 0,
    "5.12 root file system is read-only": lambda c: host(c, "ReadonlyRootfs") is True,
    "5.13 no incoming traffic on an interface": lambda c: not host(c, "PortBindings"),
    "5.14 no restart without end": lambda c: host(c, "RestartPolicy")["Name"] == "no",
    "5.15 not the host's processes": lambda c: host(c, "PidMode") == "",
    "5.16 not the host's IPC": lambda c: host(c, "IpcMode") == "private",
    "5.17 no host devices": lambda c: not host(c, "Devices") and not host(c, "DeviceRequests"),
    "5.18 ulimits are set": lambda c: (
        {u["Name"] for u in host(c, "Ulimits")} == {"nofile", "core", "memlock", "sigpending", "msgqueue"}
    ),
    "5.19 mounts do not propagate": lambda c: all(m["Propagation"] in ("private", "") for m in c["Mounts"]),
    "5.20 not the host's UTS": lambda c: host(c, "UTSMode") == "",
    "5.21 seccomp is on": lambda c: any(o.startswith("seccomp={") for o in host(c, "SecurityOpt")),
    "5.22 no privileged exec": lambda c: not c["ExecIDs"],
    "5.23 no exec as root": lambda c: not c["ExecIDs"],
    "5.24 cgroup is the engine's": lambda c: not host(c, "CgroupParent"),
    "5.25 no new privileges": lambda c: "no-new-privileges:true" in host(c, "SecurityOpt"),
    "5.27 the image is exactly one": lambda c: (
        str(c["Image"]).startswith("sha256:") and c["Config"]["Image"] == c["Image"]
    ),
    "5.28 processes are limited": lambda c: 0 < host(c, "PidsLimit") <= load_policy().pids.value,
    "5.29 not the default bridge": lambda c: set(c["NetworkSettings"]["Networks"]) <= {"none"},
    "5.30 not the host's user namespace": lambda c: host(c, "UsernsMode") != "host",
    "5.31 no engine socket": lambda c: not any("docker.sock" in m["Source"] for m in c["Mounts"]),
}
EXPLAINED = {
    "5.1": "swarm mode is not used",
    "5.2": "AppArmor and SELinux: the engine's own profile stays on where the host has them; nothing turns it off",
    "5.6": "no SSH server: the image has none, and no way in",
    "5.26": "health checks: the stream's heartbeat is the failure detector; the engine's would need an exec",
}


def _inspect(name: str) -> Container:
    inspected = subprocess.run(["docker", "inspect", name], capture_output=True, check=True)
    container: Container = json.loads(inspected.stdout)[0]
    return container


async def test_CIS_each_item_of_section_5_passes_or_is_explained(docker_sandboxes: DockerSandboxes) -> None:
    async with docker_sandboxes.open(None, None) as sandbox:
        container = await asyncio.to_thread(_inspect, sandbox.name)
    assert [name for name, holds in ITEMS.items() if not holds(container)] == []
    numbers = {name.split()[0] for name in ITEMS} | set(EXPLAINED)
    assert numbers == {f"5.{number}" for number in range(1, 32)}
