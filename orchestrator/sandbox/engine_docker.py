"""The Docker engine, over docker-py: the one file that imports docker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import docker.utils
import requests

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.container_config import adapt_to_podman, container_config
from orchestrator.sandbox.engine import (
    OWNER_LABEL,
    STATE_LABEL,
    ContainerExit,
    ContainerSpec,
    EngineInfo,
    OwnedContainer,
)
from orchestrator.sandbox.engine_complaints import check_warnings, refusal
from orchestrator.sandbox.host_paths import HostPath, host_paths, own_container
from orchestrator.sandbox.runtime_processes import end_runtime_processes

logger = logging.getLogger(__name__)
T = TypeVar("T")
_THREADS = 16
_REMOVALS = 3  # tries
# It ended by itself while it was being ended: what Podman says, and Docker.
_ENDED_MEANWHILE = ("container state improper", "is not running")
# The engine demands it for what is below its own root, as volumes are. Nothing goes from the container to the host.
_BELOW_ENGINE_ROOT = "rslave"
_START_ENGINE = "Start it (systemctl start docker, or: make engine), or set DOCKER_HOST to where one runs."


class DockerEngine:
    """An `Engine`. DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH count as for the docker command.

    docker-py blocks, so each call has a thread of a bounded pool and a deadline of `call_timeout_s`. `host_path` says
    what a directory of ours is called on the engine's host; without it, the engine is asked for our own mounts.
    """

    def __init__(self, call_timeout_s: float = 60.0, *, host_path: HostPath | None = None) -> None:
        self._call_timeout_s = call_timeout_s
        self._host_paths = [host_path] if host_path is not None else None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._client: docker.APIClient | None = None
        self._podman: bool | None = None
        self._mapped_users: bool | None = None
        self._connecting = asyncio.Lock()
        self._starting: set[Future[None]] = set()
        # By name, the ids of containers that were made here, and of those listed last: an engine that was killed
        # meanwhile leaves processes of them that it knows nothing of.
        self._made: dict[str, str] = {}
        self._listed: dict[str, str] = {}

    async def info(self) -> EngineInfo:
        return await self._call("info", _info_of)

    async def resolve_image(self, image: str) -> str:
        """See `Engine.resolve_image`."""

        def inspect(api: Any) -> str:  # typeshed leaves this call untyped
            try:
                return str(api.inspect_image(image)["Id"])
            except docker.errors.ImageNotFound:
                raise SandboxUnavailable(
                    f"the sandbox image {image} is not on this engine.", "Build it: make image, or: rlm image build"
                ) from None

        return await self._call("inspect image", inspect)

    async def start(self, spec: ContainerSpec) -> None:
        """See `Engine.start`."""
        given_up = threading.Event()

        def start(api: Any) -> None:  # typeshed leaves this call untyped
            on_host = self._on_host(api, spec)
            config = container_config(on_host)
            if self._is_podman(api):
                adapt_to_podman(config, spec.directory, on_host.directory)
            answer = api.create_container_from_config(config, spec.name)
            created = self._made[spec.name] = str(answer["Id"])
            try:
                check_warnings(answer.get("Warnings") or ())
                if not given_up.is_set():
                    api.start(spec.name)
            except Exception:
                # gVisor's processes outlive a create that failed half-way; a container that never ran has no others.
                with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException, OSError):
                    api.remove_container(spec.name, force=True, v=True)  # `destroy` is still to come
                end_runtime_processes(created)
                raise
            if given_up.is_set():
                # The caller's own `destroy` may have come before the container was there.
                api.remove_container(spec.name, force=True, v=True)

        try:
            await self._call("start", start, self._starting)
        except BaseException:
            given_up.set()
            raise

    async def wait_exit(self, name: str, timeout_s: float) -> ContainerExit | None:
        """See `Engine.wait_exit`."""

        def wait(api: docker.APIClient) -> ContainerExit | None:
            try:
                api.wait(name, timeout=math.ceil(timeout_s))
                state = api.inspect_container(name)["State"]
            except (docker.errors.NotFound, requests.exceptions.Timeout):
                return None
            except requests.exceptions.ConnectionError as error:
                # urllib3 reports a read that times out inside of a chunk so.
                if "timed out" in str(error).lower():
                    return None
                raise
            return ContainerExit(int(state["ExitCode"]), bool(state["OOMKilled"]))

        return await self._call("wait", wait)

    async def destroy(self, name: str) -> None:
        """See `Engine.destroy`. Another removal in progress is waited out."""

        def remove(api: docker.APIClient) -> None:
            for left in reversed(range(_REMOVALS)):
                try:
                    api.remove_container(name, force=True, v=True)
                except docker.errors.NotFound:
                    pass
                except docker.errors.APIError as error:
                    if left and any(told in str(error) for told in _ENDED_MEANWHILE):
                        continue
                    if error.status_code != 409:
                        raise
                    # "removal of container ... is already in progress"
                    with contextlib.suppress(docker.errors.NotFound):
                        api.wait(name, timeout=30, condition="removed")
                break
            if (identifier := self._made.pop(name, None) or self._listed.pop(name, None)) is not None:
                end_runtime_processes(identifier)

        await self._call("remove", remove)

    async def owned(self, state_id: str) -> list[OwnedContainer]:
        """See `Engine.owned`."""

        def list_them(api: docker.APIClient) -> list[OwnedContainer]:
            found = api.containers(all=True, filters={"label": f"{STATE_LABEL}={state_id}"})
            self._listed = {entry["Names"][0].lstrip("/"): entry["Id"] for entry in found if entry["Names"]}
            return [
                OwnedContainer(
                    name=entry["Names"][0].lstrip("/") if entry["Names"] else entry["Id"],
                    owner=(entry["Labels"] or {}).get(OWNER_LABEL, ""),
                    running=entry["State"] == "running",
                )
                for entry in found
            ]

        return await self._call("list", list_them)

    async def close(self) -> None:
        # A start that was given up still has its container to remove. No other call is waited for: a thread that hangs
        # in a call to a dead engine must not hang us, and its deadline ends it.
        if self._starting:
            await asyncio.to_thread(wait, set(self._starting), self._call_timeout_s)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def _call(
        self, what: str, function: Callable[[docker.APIClient], T], under_way: set[Future[T]] | None = None
    ) -> T:
        loop = asyncio.get_running_loop()
        async with self._connecting:
            if self._client is None:
                self._client = await loop.run_in_executor(self._threads, self._connect)
        call = self._threads.submit(_renamed, what, function, self._client)
        if under_way is not None:
            under_way.add(call)
            call.add_done_callback(under_way.discard)
        try:
            async with asyncio.timeout(self._call_timeout_s + 5):
                return await asyncio.wrap_future(call)
        except TimeoutError:
            raise SandboxUnavailable(
                f"the Docker engine did not answer within {self._call_timeout_s:g} s ({what}).",
                "See whether it is overloaded: docker ps",
            ) from None

    def _on_host(self, api: docker.APIClient, spec: ContainerSpec) -> ContainerSpec:
        """With the directory as the engine calls it, and of users that the engine has."""
        directory = Path(os.path.realpath(spec.directory))
        spec = dataclasses.replace(spec, mapped_users=self._maps_users(api))
        if self._host_paths is None:
            self._host_paths = _mounts_of_own_container(api)
        if not self._host_paths:
            return dataclasses.replace(spec, directory=directory)
        for path in self._host_paths:
            if (translated := path.translate(directory)) is not None:
                propagation = _BELOW_ENGINE_ROOT if path.of_volume else spec.propagation
                return dataclasses.replace(spec, directory=Path(translated), propagation=propagation)
        raise SandboxUnavailable(
            f"the engine cannot mount {directory} into sandboxes: it is inside the orchestrator's own container.",
            "Mount a volume or a directory of the host there (docker run -v NAME:PATH), with RLM_STATE_DIR below it.",
        )

    def _maps_users(self, api: docker.APIClient) -> bool:
        if self._mapped_users is None:
            self._mapped_users = _info_of(api).maps_users
        return self._mapped_users

    def _is_podman(self, api: docker.APIClient) -> bool:
        if self._podman is None:
            components = api.version().get("Components") or ()
            self._podman = any("podman" in each.get("Name", "").lower() for each in components)
        return self._podman

    def _connect(self) -> docker.APIClient:
        environment = dict(os.environ)
        if not environment.get("DOCKER_HOST"):
            environment["DOCKER_HOST"] = _local_address()
        with _renaming("connect"):
            settings = docker.utils.kwargs_from_env(environment=environment)
            timeout = int(self._call_timeout_s)
            return docker.APIClient(version="auto", timeout=timeout, max_pool_size=_THREADS, **settings)


def _mounts_of_own_container(api: Any) -> list[HostPath]:  # typeshed leaves this call untyped
    if (own := own_container()) is None:
        return []
    try:
        return host_paths(api.inspect_container(own)["Mounts"])
    except docker.errors.NotFound:
        # Another engine's container, for example one that this engine runs in: then both see the same paths.
        return []


def _info_of(api: docker.APIClient) -> EngineInfo:
    found, version = api.info(), api.version()
    return EngineInfo(
        version=version.get("Version", ""),
        api_version=version.get("ApiVersion", ""),
        cgroup_version=str(found.get("CgroupVersion", "1")),
        runtimes=tuple(sorted(found.get("Runtimes") or {})),
        default_runtime=found.get("DefaultRuntime", ""),
        security_options=tuple(found.get("SecurityOptions") or ()),
        address=api.base_url,
        components={
            str(each.get("Name", "")).lower(): str(each.get("Version", "")) for each in version.get("Components") or ()
        },
        runtime_arguments={
            name: tuple(runtime.get("runtimeArgs") or ())
            for name, runtime in (found.get("Runtimes") or {}).items()
            if "runsc" in name or "runsc" in runtime.get("path", "")
        },
    )


def _local_address() -> str:
    """The system's engine, or else this user's rootless one."""
    system = Path("/var/run/docker.sock")
    own = Path(os.environ.get("XDG_RUNTIME_DIR", ""), "docker.sock")
    if not system.exists() and own.is_absolute() and own.exists():
        return f"unix://{own}"
    return f"unix://{system}"


def _renamed(what: str, function: Callable[[docker.APIClient], T], api: docker.APIClient) -> T:
    with _renaming(what):
        return function(api)


@contextmanager
def _renaming(what: str) -> Iterator[None]:
    try:
        yield
    except docker.errors.APIError as error:
        raise refusal(what, str(error.explanation or error)) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        # docker-py puts the whole chain into one text; the cause is what a person can act on.
        logger.debug("the engine cannot be reached (%s)", what, exc_info=error)
        address = os.environ.get("DOCKER_HOST") or _local_address()
        if "permission denied" in str(error).lower():
            remedy = "Join the group docker (usermod -aG docker $USER, then log in again), or set DOCKER_HOST."
            raise SandboxUnavailable(f"the Docker engine at {address} does not let this user in.", remedy) from error
        raise SandboxUnavailable(f"no Docker engine answers at {address}.", _START_ENGINE) from error
