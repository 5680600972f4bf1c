"""The service and the scripted models as containers for integration tests (testcontainers).

::

    with ScriptedModelContainer({"planner": {"replies": ["FINAL('42')"]}}) as model:
        with OrchestratorContainer(base_url=model.base_url).with_env("RLM_MODELS", "planner") as service:
            assert RLM(server=service.address).completion("a context", "How much?") == "42"

The service is reached over a Unix socket (mode 0600) in a folder of this user's that both sides see: nobody else can
call it, with neither certificate nor token, and nothing listens on a network. Both containers share the host's network,
so that models on this machine's loopback are there for them too. So the engine must run on this machine.

Neither a registry nor Ryuk is needed: images are never pulled, and what a killed test process has left, sandboxes
included, is removed by the next container's start. Needs the "testing" extra.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import docker.errors
import requests
from testcontainers.core.config import get_docker_socket, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from orchestrator.client.calls import Client
from orchestrator.errors import InvalidInput, SandboxUnavailable, ServiceFailed, ServiceFailure
from orchestrator.sandbox.engine import STATE_LABEL

IMAGE = "rlm-orchestrator:latest"
FOLDER_LABEL = "rlm.testing.folder"
_BUILD = "Build it, in a clone: make image-orchestrator"
_POLL_S = 0.1


class _LocalContainer(DockerContainer):
    """A container of this user's, with a folder of its own and no more rights than it needs."""

    def __init__(self, image: str, startup_timeout_s: float, ready: str) -> None:
        try:
            super().__init__(image)
        except docker.errors.DockerException as error:
            raise SandboxUnavailable(f"no Docker engine answers: {error}", "Start it, or set DOCKER_HOST.") from error
        strategy = LogMessageWaitStrategy(ready).with_startup_timeout(int(startup_timeout_s))
        self.waiting_for(strategy.with_poll_interval(_POLL_S))
        self._held = ExitStack()
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """This container's folder, the same in it and here. Raises `InvalidInput` while it is not started."""
        if self._folder is None:
            raise InvalidInput(type(self).__name__, "is not started.", "Use it in a `with` block.")
        return self._folder

    def start(self) -> Self:
        """Raises `SandboxUnavailable` without an engine or the image, `ServiceFailed` when it ends before it serves."""
        try:
            engine = self.get_docker_client().client
            if not _has_image(engine, self.image):
                raise SandboxUnavailable(f"the image {self.image} is not on this engine.", _BUILD)
            _sweep_abandoned(engine)
            self._folder = self._held.enter_context(_own_folder())
            self.with_volume_mapping(self._folder, str(self._folder), "rw")
            self.with_tmpfs_mount("/tmp", "mode=1777,size=64m")
            self.with_kwargs(
                user=f"{os.getuid()}:{os.getgid()}",
                network="host",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                labels={FOLDER_LABEL: str(self._folder)},
                **self._rights(),
            )
            self._prepare(self._folder)
            with _ryuk_only_if_local(engine):
                return super().start()
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            self.stop()
            raise SandboxUnavailable(f"the engine does not run {self.image}: {error}") from error
        except (RuntimeError, TimeoutError) as error:
            said = b"".join(self.get_logs()).decode("utf-8", "replace") if self._container is not None else ""
            self.stop()
            raise ServiceFailed(ServiceFailure.UNREACHABLE, f"{self.image} did not come up: {said or error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self, force: bool = True, delete_volume: bool = True) -> None:
        """Ends it as a supervisor would, by SIGTERM, and removes what it has left. May be called again."""
        with self._held:
            container, self._container = self._container, None
            if container is not None:
                with suppress(docker.errors.NotFound):
                    container.stop(timeout=30)
                with suppress(docker.errors.NotFound):
                    container.remove(force=force, v=delete_volume)
            if self._folder is not None:
                _remove_sandboxes(self.get_docker_client().client, self._folder)
            super().stop(force, delete_volume)

    def _rights(self) -> dict[str, Any]:
        return {}

    def _prepare(self, folder: Path) -> None:
        """Fills the folder before the container starts."""


class OrchestratorContainer(_LocalContainer):
    """`rlm serve`, whose sandboxes are this engine's. Settings are its environment: `with_env("RLM_MAX_DEPTH", "2")`.

    `base_url` and `api_key` are the model API's, `options` further ones of `rlm serve`. The key can be read by whoever
    may inspect containers.
    """

    def __init__(
        self,
        image: str = IMAGE,
        *,
        sandbox_image: str = "rlm-sandbox:latest",
        base_url: str | None = None,
        api_key: str | None = None,
        options: Sequence[str] = (),
        startup_timeout_s: float = 120.0,
    ) -> None:
        super().__init__(image, startup_timeout_s, "Serving on")
        self.with_env("RLM_IMAGE", sandbox_image)
        if base_url is not None:
            self.with_env("OPENAI_BASE_URL", base_url)
        if api_key is not None or base_url is not None:
            self.with_env("OPENAI_API_KEY", api_key or "not-needed")
        # Whoever ends a test does not wait for its runs.
        self.with_command(["serve", "--drain-grace", "0", *options])

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def address(self) -> str:
        """What `orchestrator.client` takes as `server`."""
        return f"unix:{self.state_dir}/rlm.sock"

    def client(self) -> Client:
        """A new client, to be used as an async context manager."""
        return Client(self.address)

    def _rights(self) -> dict[str, Any]:
        socket = Path(get_docker_socket())
        if not socket.is_socket():
            raise SandboxUnavailable(f"the engine has no socket {socket} here.", "It must run on this machine.")
        self.with_volume_mapping(socket, "/var/run/docker.sock", "rw")
        return {"group_add": [str(socket.stat().st_gid)]}

    def _prepare(self, folder: Path) -> None:
        # The engine mounts a sandbox's part of it by this path: the same on both sides needs no translation.
        self.with_env("RLM_STATE_DIR", str(folder / "state"))


class ScriptedModelContainer(_LocalContainer):
    """Scripted models behind an OpenAI-compatible API on this machine's loopback.

    `models` are policies by name, as `orchestrator.testing.scripted.script` describes them; by default "echo" and
    "read". `faults` is a fault specification for all requests.
    """

    def __init__(
        self,
        models: Mapping[str, Any] | None = None,
        *,
        faults: str = "",
        image: str = IMAGE,
        startup_timeout_s: float = 60.0,
    ) -> None:
        super().__init__(image, startup_timeout_s, "^http://")
        self._models = models
        self._faults = faults
        self._address: str | None = None

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as `base_url`: the address with `/v1`."""
        if self._address is None:
            stdout, _ = self.get_logs()
            self._address = stdout.decode().splitlines()[0].strip()
        return f"{self._address}/v1"

    def _rights(self) -> dict[str, Any]:
        return {"entrypoint": ["/opt/rlm/python", "-m", "orchestrator.testing.scripted"]}

    def _prepare(self, folder: Path) -> None:
        command = ["--faults", self._faults] if self._faults else []
        if self._models is not None:
            script = folder / "script.json"
            script.write_text(json.dumps({"models": self._models}), "utf-8")
            command += ["--script", str(script)]
        self.with_command(command)


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder that is locked as long as this process lives: an unlocked one has been abandoned."""
    # Not the default temporary folder: a socket's path is short, and /tmp may be a RAM disk.
    folder = Path(tempfile.mkdtemp(prefix="rlm-testing-", dir="/var/tmp"))
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (folder / "state").mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _is_abandoned(folder: Path) -> bool:
    """False for another user's too: whether it is abandoned is that user's to find out."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sweep_abandoned(engine: Any) -> None:
    for container in engine.containers.list(all=True, filters={"label": FOLDER_LABEL}, ignore_removed=True):
        folder = Path(container.labels[FOLDER_LABEL])
        if _is_abandoned(folder):
            _remove(container)
            _remove_sandboxes(engine, folder)
            shutil.rmtree(folder, ignore_errors=True)


def _remove_sandboxes(engine: Any, folder: Path) -> None:
    identity = folder / "state" / "id"
    if identity.is_file():
        label = f"{STATE_LABEL}={identity.read_text('ascii').strip()}"
        for container in engine.containers.list(all=True, filters={"label": label}, ignore_removed=True):
            _remove(container)


def _remove(container: Any) -> None:
    try:
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        if error.status_code != 409:  # its removal is in progress
            raise


def _has_image(engine: Any, image: str) -> bool:
    try:
        engine.images.get(image)
    except docker.errors.ImageNotFound:
        return False
    return True


@contextmanager
def _ryuk_only_if_local(engine: Any) -> Iterator[None]:
    """Without Ryuk where its image would have to be pulled; other containers of the process are not touched."""
    before = testcontainers_config.ryuk_disabled
    testcontainers_config.ryuk_disabled = before or not _has_image(engine, testcontainers_config.ryuk_image)
    try:
        yield
    finally:
        testcontainers_config.ryuk_disabled = before
