"""The narrow seam to whatever runs containers: it places, starts, watches and destroys them, and nothing else.

Code, contexts, output and model traffic never pass through it, so a cluster's engine can be a second implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.sandbox.policy import Policy

OWNER_LABEL = "rlm.owner"
STATE_LABEL = "rlm.state"


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that tells one container from another; the policy says the rest."""

    name: str
    image_id: str
    policy: Policy = field(repr=False)
    directory: Path  # of the host, mounted read-only
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    identity: int = 0  # of each live sandbox another: it decides the user that it runs as
    mapped_users: bool = False  # the engine has a user namespace of its own, with fewer users
    propagation: str = "private"  # of mounts that the host makes in `directory` later; never from the container


@dataclass(frozen=True, slots=True)
class ContainerExit:
    exit_code: int
    out_of_memory: bool


@dataclass(frozen=True, slots=True)
class OwnedContainer:
    name: str
    owner: str
    running: bool


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a person, or `doctor`, wants to know of the engine."""

    version: str
    api_version: str
    cgroup_version: str
    runtimes: tuple[str, ...]
    default_runtime: str
    security_options: tuple[str, ...]
    address: str
    components: Mapping[str, str] = field(default_factory=dict)  # their versions: containerd, runc
    # How each gVisor runtime was registered; other runtimes are not in it.
    runtime_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def maps_users(self) -> bool:
        """Whether it has a user namespace of its own, and so fewer users."""
        return any(option.startswith(("name=rootless", "name=userns")) for option in self.security_options)


class Engine(Protocol):
    """Every method raises `SandboxUnavailable`, with a remedy, when the engine cannot be reached or refuses."""

    async def info(self) -> EngineInfo: ...

    async def resolve_image(self, image: str) -> str:
        """The ID of an image that is here. Raises `SandboxUnavailable` when it is not: nothing is ever pulled."""

    async def start(self, spec: ContainerSpec) -> None:
        """Creates and starts the container. After a failure or a cancellation, `destroy(spec.name)` undoes it."""

    async def wait_exit(self, name: str, timeout_s: float) -> ContainerExit | None:
        """How it ended; None when it has not within this time, or is not there."""

    async def destroy(self, name: str) -> None:
        """Kills and removes it. One that is not there is fine."""

    async def owned(self, state_id: str) -> list[OwnedContainer]:
        """All containers of one state directory, in whatever state, of any owner."""

    async def close(self) -> None: ...
