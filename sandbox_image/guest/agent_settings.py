"""What the agent is told by its environment. Every path and time can be set: it also runs outside a container."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple


class SettingsError(Exception):
    """The environment does not say what the agent needs to know."""


class Settings(NamedTuple):
    """Times are in seconds."""

    address: str  # RLM_ADDRESS: unix:path, or host:port
    context_dir: str  # RLM_CONTEXT_DIR: where context files are; by default beside the Unix socket
    file_dir: str  # RLM_FILE_DIR: where the host's files go
    attach_timeout_s: float  # RLM_ATTACH_TIMEOUT_S: the host must be there within this time
    max_lifetime_s: float  # RLM_MAX_LIFETIME_S: the agent ends itself after this time; 0 for never
    heartbeat_s: float  # RLM_HEARTBEAT_S
    python: str  # RLM_PYTHON: the interpreter that runs the worker
    site: str  # RLM_SITE: libraries for the code
    cgroup: str  # RLM_CGROUP: where the memory controller's files are
    niceness: int  # RLM_WORKER_NICE: how far the worker stands back, so that the agent answers while it spins

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Reads the settings.

        Raises:
            SettingsError: RLM_ADDRESS is missing, or a number is none.
        """
        address = environment.get("RLM_ADDRESS", "")
        if not address:
            raise SettingsError("RLM_ADDRESS is not set. Set it to the host's gRPC address, such as unix:/rlm/socket")
        path = address.removeprefix("unix:").removeprefix("//") if address.startswith("unix:") else "/rlm/socket"
        return cls(
            address=address,
            context_dir=environment.get("RLM_CONTEXT_DIR", os.path.dirname(path)),
            file_dir=environment.get("RLM_FILE_DIR", "/tmp"),
            attach_timeout_s=_number(environment, "RLM_ATTACH_TIMEOUT_S", 30),
            max_lifetime_s=_number(environment, "RLM_MAX_LIFETIME_S", 0),
            heartbeat_s=_number(environment, "RLM_HEARTBEAT_S", 2),
            python=environment.get("RLM_PYTHON", sys.executable),
            site=environment.get("RLM_SITE", "/opt/rlm/site"),
            cgroup=environment.get("RLM_CGROUP", "/sys/fs/cgroup"),
            niceness=int(_number(environment, "RLM_WORKER_NICE", 5)),
        )


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{name} is {text!r}. Set it to a number of at least 0")
    return value
