"""What the policy says is what the engine was told, and what the code in a sandbox meets."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.policy import Policy, load_policy
from orchestrator.sandbox.settings import SandboxSettings

pytestmark = pytest.mark.docker

_MIB = 1 << 20
LOOK = """
import json, os, resource
def first(*paths):
    return next((open(path).read().split() for path in paths if os.path.exists(path)), None)
def size(path):
    found = os.statvfs(path)
    return [found.f_blocks * found.f_frsize, found.f_files]
quota, period = first("/sys/fs/cgroup/cpu.max") or [
    first("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us")[0],
    first("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us")[0]]
print(json.dumps({
    "memory": int(first("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")[0]),
    "pids": int(first("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max")[0]),
    "cpus": int(quota) / int(period),
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE),
    "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK),
    "sigpending": resource.getrlimit(resource.RLIMIT_SIGPENDING),
    "msgqueue": resource.getrlimit(resource.RLIMIT_MSGQUEUE),
    "closed": [path for path in ("/dev/mqueue", "/dev/pts") if os.statvfs(path).f_flag & 1 and not os.listdir(path)],
    "oom_score_adj": int(open("/proc/self/oom_score_adj").read()),
    "tmp": size("/tmp"), "shm": size("/dev/shm")[0],
    "tmp_options": next(line.split()[3].split(",") for line in open("/proc/self/mounts") if line.split()[1] == "/tmp"),
}))
"""
CHOSEN: dict[str, Any] = {"memory_mib": 512, "cpus": 0.5, "pids": 64, "tmp_mib": 16}


def _inspect(name: str) -> dict[str, Any]:
    inspected = subprocess.run(["docker", "inspect", name], capture_output=True, check=True)
    host: dict[str, Any] = json.loads(inspected.stdout)[0]["HostConfig"]
    return host


@pytest.mark.parametrize("chosen", [{}, CHOSEN], ids=["policy", "a-persons-own"])
async def test_the_limits_of_the_policy_are_in_force(
    no_leaks: None, sandbox_settings: SandboxSettings, chosen: dict[str, Any]
) -> None:
    policy: Policy = load_policy().with_limits(**chosen)
    memory, tmp = policy.memory_mib.value * _MIB, policy.tmp.value
    async with (
        DockerSandboxes.start(replace(sandbox_settings, **chosen)) as sandboxes,
        sandboxes.open(None, None) as sandbox,
    ):
        told = await asyncio.to_thread(_inspect, sandbox.name)
        result = await sandbox.run(LOOK)
    assert result.error is None, result.error.traceback
    met = json.loads(result.stdout.text)
    limits = {each["Name"]: (each["Soft"], each["Hard"]) for each in told["Ulimits"]}

    assert told["Memory"] == told["MemorySwap"] == met["memory"] == memory
    assert told["PidsLimit"] == met["pids"] == policy.pids.value
    assert told["NanoCpus"] / 1e9 == met["cpus"] == policy.cpus.value
    assert told["CpuShares"] == policy.cpu_shares.value
    for name, value in (
        ("nofile", policy.open_files.value),
        ("core", policy.core_bytes.value),
        ("memlock", policy.locked_memory_bytes.value),
        ("sigpending", policy.pending_signals.value),
        ("msgqueue", policy.message_queue_bytes.value),
    ):
        assert limits[name] == tuple(met[name]) == (value, value), name
    # The agent may be the last to go, and not before its children: code's own score is never below the policy's.
    assert told["OomScoreAdj"] == policy.oom_score_adj.value <= met["oom_score_adj"]
    assert told["ShmSize"] == met["shm"] == policy.shm_mib.value * _MIB
    assert met["tmp"] == [policy.tmp_mib.value * _MIB, tmp.inodes]
    assert set(told["Tmpfs"]) == {tmp.path, *policy.closed_mounts.value}
    assert met["closed"] == list(policy.closed_mounts.value)
    assert told["MaskedPaths"] == list(policy.masked_paths.value)
    assert told["ReadonlyPaths"] == list(policy.read_only_paths.value)
    assert {each for each in tmp.options if not each.startswith("mode=")} <= set(met["tmp_options"])
    assert set(tmp.options) <= set(told["Tmpfs"][tmp.path].split(","))
