"""Reads `policy.toml`: what a container may do, each rule with its reason."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from orchestrator.errors import InvalidInput

T = TypeVar("T")
_HERE = Path(__file__).parent
Count = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]


class Rule(msgspec.Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """One flag or limit, and why it is so."""

    value: T
    reason: Annotated[str, Meta(min_length=20)]


class Tmp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    options: tuple[str, ...]
    inodes: Count


class Users(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A range of user ids, of which each live sandbox has one."""

    first: Annotated[int, Meta(ge=1000, le=2**31 - 1)]
    count: Count

    def user_of(self, identity: int) -> str:
        """The user and group of a sandbox; identities that follow one another get users that do."""
        number = self.first + identity % self.count
        return f"{number}:{number}"

    def __contains__(self, number: int) -> bool:
        return self.first <= number < self.first + self.count


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole policy. A `Literal` type marks a rule that the design rests on: another value is an error."""

    network: Rule[Literal["none"]]
    users: Rule[Users]
    users_of_a_mapped_engine: Rule[Users]
    supplementary_groups: Rule[tuple[str, ...]]
    capabilities_dropped: Rule[tuple[Literal["ALL"]]]
    no_new_privileges: Rule[Literal[True]]
    privileged: Rule[Literal[False]]
    read_only_root: Rule[Literal[True]]
    tmp: Rule[Tmp]
    tmp_mib: Rule[Count]
    shm_mib: Rule[Count]
    closed_mounts: Rule[tuple[str, ...]]
    masked_paths: Rule[tuple[str, ...]]
    read_only_paths: Rule[tuple[str, ...]]
    memory_mib: Rule[Annotated[int, Meta(ge=64)]]
    cpus: Rule[Annotated[float, Meta(gt=0)]]
    cpu_shares: Rule[Annotated[int, Meta(ge=2, le=1024)]]
    pids: Rule[Annotated[int, Meta(ge=32)]]
    open_files: Rule[Annotated[int, Meta(ge=64)]]
    core_bytes: Rule[Literal[0]]
    locked_memory_bytes: Rule[NonNegative]
    pending_signals: Rule[Count]
    message_queue_bytes: Rule[NonNegative]
    oom_score_adj: Rule[Annotated[int, Meta(ge=0, le=1000)]]
    ipc: Rule[Literal["private", "none"]]
    cgroup_namespace: Rule[Literal["private"]]
    pid_namespace: Rule[Literal["private"]]
    log_driver: Rule[Literal["none"]]
    init: Rule[Literal[False]]
    restart: Rule[Literal["no"]]
    pull: Rule[Literal["never"]]
    workdir: Rule[Literal["/"]]
    mount_target: Rule[Literal["/rlm"]]
    seccomp: Rule[str]  # "engine default", or a profile's file name beside the policy
    apparmor: Rule[Literal["engine default"]]
    runtime: Rule[str]  # "engine default", or a runtime's name as the engine knows it

    def with_limits(
        self,
        *,
        memory_mib: int | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        tmp_mib: int | None = None,
        runtime: str | None = None,
    ) -> Policy:
        """The policy with a person's own limits. Raises `InvalidInput` for one that the policy's types refuse."""
        chosen = {"memory_mib": memory_mib, "cpus": cpus, "pids": pids, "tmp_mib": tmp_mib, "runtime": runtime}
        raw: dict[str, Any] = msgspec.to_builtins(self)
        for name, value in chosen.items():
            if value is not None:
                raw[name] = {"value": value, "reason": f"chosen by the setting {name}"}
        return _convert(raw, "the sandbox settings")

    @property
    def seccomp_profile(self) -> str | None:
        """The profile as one line of JSON, as the engine wants it; None is the engine's default."""
        if self.seccomp.value == ENGINE_DEFAULT:
            return None
        return _read_profile(self.seccomp.value)


ENGINE_DEFAULT = "engine default"


def load_policy(path: Path = _HERE / "policy.toml") -> Policy:
    """Raises `InvalidInput` naming the key that is missing, unknown or wrong."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput("policy", f"{path} cannot be read: {error}.") from error
    return _convert(raw, str(path))


def _convert(raw: dict[str, Any], origin: str) -> Policy:
    try:
        return msgspec.convert(raw, Policy)
    except msgspec.ValidationError as error:
        raise InvalidInput("policy", f"{error} (in {origin}).") from error


@cache
def _read_profile(name: str) -> str:
    if Path(name).name != name:
        raise InvalidInput("policy", f"seccomp: must be a file name beside the policy; it is {name!r}.")
    try:
        return msgspec.json.encode(msgspec.json.decode((_HERE / name).read_bytes())).decode()
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput("policy", f"seccomp: the profile {name} cannot be read: {error}.") from error
