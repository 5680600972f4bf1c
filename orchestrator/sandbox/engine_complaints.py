"""What an engine complains of, as an error with its remedy. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from orchestrator.errors import SandboxUnavailable

logger = logging.getLogger(__name__)


def check_warnings(warnings: Iterable[str]) -> None:
    """An engine that cannot hold a limit says so, and makes the container without it."""
    for warning in warnings:
        if "discarded" in warning.lower():
            raise SandboxUnavailable(
                f"the Docker engine cannot hold a limit of the sandbox's policy: {warning}",
                "Enable that controller: boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or delegate it to a "
                "rootless engine (docs.docker.com/engine/security/rootless), and restart the engine.",
            )
        # For example that swap cannot be limited: memory still is.
        logger.info("the engine says of a sandbox: %s", warning)


def refusal(what: str, text: str) -> SandboxUnavailable:
    """What a refusal of the engine means for a person."""
    remedy = ""
    if "bind source path does not exist" in text:
        remedy = (
            "The engine must see the state directory: set RLM_STATE_DIR to a path that it shares with this process."
        )
    elif "unknown or invalid runtime" in text.lower() or "unknown runtime" in text.lower():
        remedy = "Install that runtime and register it with the engine (gVisor: make gvisor), or unset RLM_RUNTIME."
    elif "No such image" in text:
        remedy = "Build it: make image, or: rlm image build"
    return SandboxUnavailable(f"the Docker engine refused to {what} a container: {text}", remedy)
