"""What `rlm doctor` looks at: each check says what is so, and a failing one what to do."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import figures
from orchestrator.cli.services import Services
from orchestrator.errors import InvalidInput, RLMError, SandboxUnavailable

if TYPE_CHECKING:
    from orchestrator.config import Config
    from orchestrator.sandbox.engine import Engine, EngineInfo

_LOW_DISK_BYTES = 2 << 30
_API_TIMEOUT_S = 10.0


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, but not as well or as safely as it could
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    status: Status
    text: str
    remedy: str = ""


async def findings(services: Services, *, online: bool, probe: bool = False) -> AsyncIterator[Finding]:
    """All checks, in the order in which a person would mend things."""
    yield Finding("host", Status.OK, f"Linux {platform.release()}, {platform.machine()}, {_host_size()}")
    try:
        config = services.load({})
    except InvalidInput as error:
        yield Finding("settings", Status.FAILED, f"{error.name}: {error.rule}", error.remedy or "See: rlm config")
        return
    yield Finding("settings", Status.OK, f"model {config.model}, max_depth {config.max_depth}")
    async with services.engine() as engine:
        async for finding in _engine_findings(config, engine):
            yield finding
    if probe:
        yield await _probes(services, config)
    yield _memory(config)
    yield _key(config)
    if online:
        yield await asyncio.to_thread(_api, config)


async def _engine_findings(config: Config, engine: Engine) -> AsyncIterator[Finding]:
    try:
        info = await engine.info()
    except SandboxUnavailable as error:
        yield Finding("engine", Status.FAILED, error.what, error.remedy)
        yield _disk(config)
        return
    facts = f", API {info.api_version}, cgroup v{info.cgroup_version}{_address(info)}"
    judged = _release("engine", info.version)
    yield Finding("engine", judged.status, f"Docker {judged.text}{facts}", judged.remedy)
    for component in ("containerd", "runc"):
        if version := info.components.get(component):
            yield _release(component, version)
    yield _runtime(config, info)
    yield _confinement(info)
    try:
        image_id = await engine.resolve_image(config.image)
        yield Finding("image", Status.OK, f"{config.image} is {image_id[:19]}")
    except SandboxUnavailable as error:
        yield Finding("image", Status.FAILED, error.what, "Build it: rlm image build")
    yield _disk(config)
    yield await _leftovers(config, engine)


async def _probes(services: Services, config: Config) -> Finding:
    try:
        async with services.open(config) as orchestrator:
            found = await orchestrator.probe_sandboxes()
    except RLMError as error:
        return Finding("probes", Status.FAILED, str(error), "Mend what stands above first.")
    if found.mandatory:
        remedy = "See docs/security.md. A service refuses to start so, unless told --allow-weaker."
        return Finding("probes", Status.FAILED, f"not so is that {'; '.join(found.weaknesses)}", remedy)
    if found.other:
        return Finding("probes", Status.WARNING, f"not so is that {'; '.join(found.other)}", "See docs/security.md")
    return Finding("probes", Status.OK, f"{found.tried} attacks from inside a sandbox have failed")


def _address(info: EngineInfo) -> str:
    # The library's name for "over the Unix socket" tells a person nothing.
    return "" if info.address.startswith("http+docker") else f", at {info.address}"


def _runtime(config: Config, info: EngineInfo) -> Finding:
    known = ", ".join(info.runtimes)
    if config.runtime is None:
        return Finding("runtime", Status.OK, f"{info.default_runtime or 'the default'} (known: {known})")
    if config.runtime in info.runtimes:
        if (lacking := _lacking_flags(info.runtime_arguments.get(config.runtime))) is not None:
            return lacking
        return Finding("runtime", Status.OK, f"{config.runtime} (known: {known})")
    return Finding(
        "runtime",
        Status.FAILED,
        f"{config.runtime} is not known to the engine (known: {known})",
        'Register it with the engine (make gvisor, or its daemon.json, "runtimes"), or unset RLM_RUNTIME.',
    )


def _lacking_flags(arguments: tuple[str, ...] | None) -> Finding | None:
    """What a gVisor runtime was not registered with; None when nothing is lacking, or it is another runtime."""
    if arguments is None:
        return None
    host_sockets = ("--host-uds=open", "--host-uds=all", "--fsgofer-host-uds", "-fsgofer-host-uds", "-host-uds=open")
    if not any(argument in host_sockets for argument in arguments):
        return Finding(
            "runtime",
            Status.FAILED,
            "gVisor is registered without --host-uds=open: a sandbox cannot reach its socket",
            "Register it with that flag (older releases: --fsgofer-host-uds): make gvisor",
        )
    if "--network=none" not in arguments:
        return Finding(
            "runtime",
            Status.WARNING,
            "gVisor is registered without --network=none: a second lock on what network=none locks already",
            "Register it with that flag: make gvisor",
        )
    return None


def _confinement(info: EngineInfo) -> Finding:
    names = [option.partition("name=")[2].partition(",")[0] for option in info.security_options]
    if "seccomp" not in names:
        return Finding(
            "confinement",
            Status.FAILED,
            "the engine has no seccomp: a sandbox would have the whole kernel to attack",
            "Use a kernel and an engine with seccomp.",
        )
    return Finding("confinement", Status.OK, ", ".join(name for name in names if name))


def _disk(config: Config) -> Finding:
    from orchestrator.sandbox.state_dir import open_state_dir

    try:
        state = open_state_dir(Path(config.state_dir))
        free = shutil.disk_usage(state.path).free
    except InvalidInput as error:
        return Finding("state dir", Status.FAILED, f"{error.name}: {error.rule}", error.remedy)
    text = f"{state.path}, {figures.size(free)} free"
    if free < _LOW_DISK_BYTES:
        remedy = "Free some space, or set RLM_STATE_DIR to a larger disk."
        return Finding("state dir", Status.WARNING, text, remedy)
    return Finding("state dir", Status.OK, text)


async def _leftovers(config: Config, engine: Engine) -> Finding:
    from orchestrator.sandbox.state_dir import open_state_dir

    try:
        state = open_state_dir(Path(config.state_dir))
        containers = await engine.owned(state.id)
    except RLMError as error:
        return Finding("leftovers", Status.FAILED, str(error))
    dead = {name for name in {each.owner for each in containers} if state.owner_is_dead(name)}
    stale = sum(each.owner in dead for each in containers)
    live = len(containers) - stale
    text = f"{figures.count(live, 'sandbox', 'sandboxes')} of live processes, {stale} of dead ones"
    if stale or state.dead_owners():
        return Finding("leftovers", Status.WARNING, text, "Remove them: rlm cleanup (so does every start)")
    return Finding("leftovers", Status.OK, text)


def _release(component: str, version: str) -> Finding:
    from orchestrator.sandbox.releases import outdated

    if (lacks := outdated(component, version)) is None:
        return Finding(component, Status.OK, version)
    fixed = ", ".join(".".join(map(str, numbers)) for numbers in sorted(lacks.branches.values()))
    remedy = f"Update {component} to {fixed} or newer"
    if component == "runc":
        remedy += ", or use gVisor: RLM_RUNTIME=runsc"
    return Finding(
        component,
        Status.WARNING,
        f"{version} {lacks.what}, unless your distribution patched it ({lacks.cves})",
        f"{remedy}.",
    )


def _memory(config: Config) -> Finding:
    total = _total_memory()
    text = (
        f"up to {figures.count(config.capacity, 'sandbox', 'sandboxes')} of {figures.size(config.memory_mib << 20)} "
        f"and {config.cpus:g} CPU, {config.pids} processes each"
    )
    if config.memory_mib << 20 > total:
        return Finding(
            "limits",
            Status.WARNING,
            f"{text}: one alone could take more than this host's {figures.size(total)}",
            "Lower RLM_MEMORY_MIB.",
        )
    # Sandboxes rarely fill their memory, so more than the host has is not wrong; a person should know all the same.
    fit = total // (config.memory_mib << 20)
    return Finding("limits", Status.OK, text + (f" (full ones: {fit} fit this host)" if fit < config.capacity else ""))


def _key(config: Config) -> Finding:
    where = config.base_url or "https://api.openai.com/v1"
    if config.api_key:
        return Finding("api key", Status.OK, f"set, for {where}")
    if config.base_url:
        return Finding(
            "api key", Status.WARNING, f"not set, for {where}", "Set OPENAI_API_KEY if that server asks for one."
        )
    return Finding("api key", Status.FAILED, "not set", "Set OPENAI_API_KEY, in the environment or in .env")


def _api(config: Config) -> Finding:
    """Asks for the list of models: it costs nothing, and proves address and key."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    address = (config.base_url or "https://api.openai.com/v1").rstrip("/") + "/models"
    if not address.startswith(("http://", "https://")):
        return Finding("api", Status.FAILED, f"{address} is not an http address", "Correct OPENAI_BASE_URL.")
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    try:
        with urlopen(Request(address, headers=headers), timeout=_API_TIMEOUT_S) as response:
            return Finding("api", Status.OK, f"{address} answers ({response.status})")
    except HTTPError as error:
        if error.code in (401, 403):
            return Finding("api", Status.FAILED, f"{address} refuses the key ({error.code})", "Correct OPENAI_API_KEY.")
        if error.code in (404, 405):
            return Finding(
                "api",
                Status.WARNING,
                f"{address} answers {error.code}",
                "OPENAI_BASE_URL should end in /v1; some servers have no list of models, and work all the same.",
            )
        return Finding("api", Status.FAILED, f"{address} answers {error.code}", "See that server's own status.")
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding(
            "api", Status.FAILED, f"{address} cannot be reached: {reason}", "Check OPENAI_BASE_URL and the network."
        )


def _host_size() -> str:
    return f"{figures.count(os.cpu_count() or 1, 'CPU')}, {figures.size(_total_memory())} memory"


def _total_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
