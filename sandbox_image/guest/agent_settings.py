"""What the agent is told by its environment. Every path and time can be set: it also runs outside a container."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as that of `typing`, whose import would be a sixth of the agent's start
if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingsError(Exception):
    """The environment does not say what the agent needs to know."""


class Settings:
    """Times are in seconds."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Reads the settings.

        Raises:
            SettingsError: RLM_ADDRESS is missing, or a number is none.
        """
        address = environment.get("RLM_ADDRESS", "")
        if not address:
            raise SettingsError("RLM_ADDRESS is not set. Set it to the host's gRPC address, such as unix:/rlm/socket")
        path = address.removeprefix("unix:").removeprefix("//") if address.startswith("unix:") else "/rlm/socket"
        # unix:path, or host:port
        self.address = address
        # Where context files are; by default beside the Unix socket.
        self.context_dir = environment.get("RLM_CONTEXT_DIR", os.path.dirname(path))
        # Where the host's files go.
        self.file_dir = environment.get("RLM_FILE_DIR", "/tmp")
        # The host must be there within this time.
        self.attach_timeout_s = _number(environment, "RLM_ATTACH_TIMEOUT_S", 30)
        # The agent ends itself after this time; 0 for never.
        self.max_lifetime_s = _number(environment, "RLM_MAX_LIFETIME_S", 0)
        self.heartbeat_s = _number(environment, "RLM_HEARTBEAT_S", 2)
        # The interpreter that runs the worker.
        self.python = environment.get("RLM_PYTHON", sys.executable)
        # Libraries for the code.
        self.site = environment.get("RLM_SITE", "/opt/rlm/site")
        # Where the memory controller's files are.
        self.cgroup = environment.get("RLM_CGROUP", "/sys/fs/cgroup")
        # How far the worker stands back, so that the agent answers while it spins.
        self.niceness = int(_number(environment, "RLM_WORKER_NICE", 5))


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{name} is {text!r}. Set it to a number of at least 0")
    return value
