"""The policy in the words of the Docker Engine API (ContainerCreate)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.sandbox.engine import ContainerSpec
from orchestrator.sandbox.policy import ENGINE_DEFAULT, Policy

_PROFILE_FILE = "seccomp.json"
_PODMAN_PROCESSES = 32_768  # what its own service allows itself
_MIB = 1024 * 1024
# Nothing is in it, and nothing can be put there.
_EMPTY = "ro,nosuid,nodev,noexec,size=4k,nr_inodes=1,mode=0555"


def container_config(spec: ContainerSpec) -> dict[str, Any]:
    """The body of the Engine API's ContainerCreate: the policy in the engine's words."""
    policy = spec.policy
    return {
        "Image": spec.image_id,
        "User": (policy.users_of_a_mapped_engine if spec.mapped_users else policy.users).value.user_of(spec.identity),
        "WorkingDir": policy.workdir.value,
        "Env": [f"{name}={value}" for name, value in sorted(spec.environment.items())],
        "Labels": dict(spec.labels),
        "NetworkDisabled": True,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "OpenStdin": False,
        "Tty": False,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(policy, spec.directory, spec.propagation),
    }


def _host_config(policy: Policy, directory: Path, propagation: str) -> dict[str, Any]:
    tmp = policy.tmp.value
    tmp_options = [*tmp.options, f"size={policy.tmp_mib.value}m", f"nr_inodes={tmp.inodes}"]
    memory = policy.memory_mib.value * _MIB
    config: dict[str, Any] = {
        "NetworkMode": policy.network.value,
        "GroupAdd": list(policy.supplementary_groups.value),
        "CapDrop": list(policy.capabilities_dropped.value),
        "CapAdd": [],
        "Privileged": policy.privileged.value,
        "SecurityOpt": _security_options(policy),
        "ReadonlyRootfs": policy.read_only_root.value,
        "Tmpfs": {tmp.path: ",".join(tmp_options), **dict.fromkeys(policy.closed_mounts.value, _EMPTY)},
        "MaskedPaths": list(policy.masked_paths.value),
        "ReadonlyPaths": list(policy.read_only_paths.value),
        "ShmSize": policy.shm_mib.value * _MIB,
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(policy.cpus.value * 1e9),
        "CpuShares": policy.cpu_shares.value,
        "PidsLimit": policy.pids.value,
        "Ulimits": [
            _ulimit("nofile", policy.open_files.value),
            _ulimit("core", policy.core_bytes.value),
            _ulimit("memlock", policy.locked_memory_bytes.value),
            _ulimit("sigpending", policy.pending_signals.value),
            _ulimit("msgqueue", policy.message_queue_bytes.value),
        ],
        "OomScoreAdj": policy.oom_score_adj.value,
        "OomKillDisable": False,
        "IpcMode": policy.ipc.value,
        "CgroupnsMode": policy.cgroup_namespace.value,
        "LogConfig": {"Type": policy.log_driver.value, "Config": {}},
        "Init": policy.init.value,
        "RestartPolicy": {"Name": policy.restart.value},
        "AutoRemove": False,  # how it ended is asked after its end
        "Mounts": [
            {
                "Type": "bind",
                "Source": str(directory),
                "Target": policy.mount_target.value,
                "ReadOnly": True,
                "BindOptions": {"Propagation": propagation},
            }
        ],
    }
    if policy.runtime.value != ENGINE_DEFAULT:
        config["Runtime"] = policy.runtime.value
    return config


def _security_options(policy: Policy) -> list[str]:
    options = ["no-new-privileges:true"]
    if (profile := policy.seccomp_profile) is not None:
        options.append(f"seccomp={profile}")
    return options


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def adapt_to_podman(config: dict[str, Any], here: Path, there: Path) -> None:
    """Podman reads a profile from a file only, and knows no limit on inodes: memory bounds them there.

    Where a request says nothing of a user's processes it asks for a million, which takes CAP_SYS_RESOURCE where it may
    have fewer itself. What bounds a sandbox's processes is its cgroup; this counts those of one user.
    """
    host = config["HostConfig"]
    host["Ulimits"] = [*host["Ulimits"], _ulimit("nproc", _PODMAN_PROCESSES)]
    host["Tmpfs"] = {
        path: ",".join(option for option in options.split(",") if not option.startswith("nr_inodes="))
        for path, options in host["Tmpfs"].items()
    }
    for index, option in enumerate(host["SecurityOpt"]):
        name, _, profile = option.partition("=")
        if name == "seccomp":
            # The sandbox's own directory: it goes with the sandbox, and the guest's user cannot read this file.
            descriptor = os.open(here / _PROFILE_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(profile)
            host["SecurityOpt"][index] = f"seccomp={there / _PROFILE_FILE}"
