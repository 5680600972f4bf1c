"""Brings one sandbox up, to where its guest has said Hello, and takes it down again."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import secrets
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SandboxLost, SandboxUnavailable
from orchestrator.sandbox.engine import OWNER_LABEL, STATE_LABEL, ContainerSpec, Engine
from orchestrator.sandbox.guest_server import GuestServer
from orchestrator.sandbox.policy import Policy
from orchestrator.sandbox.session import GuestSession, SessionLimits
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.sandbox.state_dir import CONTEXT_NAME, SOCKET_NAME, StateDir
from orchestrator.seams import Answer, OutputSink
from orchestrator.values import CellResult, Context

logger = logging.getLogger(__name__)
_EXIT_CHECK_S = 2.0


@dataclass(frozen=True, slots=True)
class LiveSandbox:
    """A container whose guest is attached. A `seams.Sandbox` once `give_work` has been called."""

    name: str
    warm: bool
    session: GuestSession
    server: GuestServer
    directory: Path

    async def give_work(self, context: Context | None, answer: Answer | None) -> None:
        """Puts the context beside the socket and opens the session. Raises `SandboxLost`, `SandboxUnavailable`.

        A guest that was heard from lately is taken at its word: its first cell follows the Open on the same stream, and
        a round trip now could not tell that it will live until then. Another one has to answer first.
        """
        if context is not None:
            await _placed(context.path, self.directory / CONTEXT_NAME)
        self.session.begin(context.info if context is not None else None, CONTEXT_NAME, answer)
        if not self.session.heard_lately:
            await self.session.opened()

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        """See `seams.Sandbox.run`."""
        return await self.session.run(code, on_output, time_limit_s)

    async def interrupt(self) -> None:
        """See `seams.Sandbox.interrupt`."""
        await self.session.interrupt()

    async def add_context(self, context: Context, variable: str) -> None:
        """See `seams.Sandbox.add_context`."""
        file_name = f"{CONTEXT_NAME}-{secrets.token_hex(8)}"
        await _placed(context.path, self.directory / file_name)
        await self.session.add_context(context.info, file_name, variable)

    async def write_file(self, path: str, data: bytes) -> None:
        """See `seams.Sandbox.write_file`."""
        await self.session.write_file(path, data)

    async def read_file(self, path: str) -> bytes:
        """See `seams.Sandbox.read_file`."""
        return await self.session.read_file(path)

    async def lost(self) -> SandboxLost:
        """See `seams.Sandbox.lost`."""
        return await self.session.lost()


class Launcher:
    """Starts and destroys sandboxes of one owner; knows the names of all that may exist."""

    def __init__(self, engine: Engine, state: StateDir, owner: str, image_id: str, settings: SandboxSettings) -> None:
        self._engine = engine
        self._state = state
        self._owner = owner
        self._image_id = image_id
        self._settings = settings
        self._numbers = itertools.count(1)
        # A wide enough range makes it unlikely that the users of two processes meet, whatever their state directories.
        self._first_identity = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8])
        self._starts = asyncio.Semaphore(settings.starts_at_a_time)
        self._known: set[str] = set()

    def knows(self, name: str) -> bool:
        """Whether a container of this name is there, or is being started or destroyed."""
        return name in self._known

    async def start(self, policy: Policy, *, warm: bool) -> LiveSandbox:
        """Raises `SandboxUnavailable`; leaves nothing behind then, nor when cancelled."""
        async with self._starts, AsyncExitStack() as undo:
            number = next(self._numbers)
            directory_name = f"{self._owner}-{number:x}"
            name = f"rlm-{directory_name}"
            began = time.monotonic()
            directory = self._state.make_sandbox_dir(directory_name)
            undo.callback(self._state.remove_sandbox_dir, directory_name)
            session = GuestSession(name, self._session_limits(), lambda wait_s: self._engine.wait_exit(name, wait_s))
            self._known.add(name)
            undo.push_async_callback(self._remove, name)
            server = await undo.enter_async_context(GuestServer(session, directory / SOCKET_NAME))
            await self._engine.start(self._spec(name, directory, policy, self._first_identity + number))
            started = time.monotonic()
            await self._wait_attached(name, session)
            undo.pop_all()
            ended = time.monotonic()
            logger.debug("%s: container %.3f s, guest %.3f s", name, started - began, ended - started)
            return LiveSandbox(name, warm, session, server, directory)

    async def hang_up(self, sandbox: LiveSandbox) -> None:
        """Ends its connection, upon which a guest of ours leaves."""
        await sandbox.server.__aexit__(None, None, None)

    async def remove(self, sandbox: LiveSandbox) -> None:
        """Takes the rest down. What the engine refuses to remove is left to the sweep, and logged."""
        await self._remove(sandbox.name)
        await asyncio.to_thread(self._state.remove_sandbox_dir, sandbox.directory.name)

    async def _remove(self, name: str) -> None:
        try:
            await self._engine.destroy(name)
        except SandboxUnavailable as error:
            logger.warning("the container %s could not be removed now: %s", name, error)
        finally:
            self._known.discard(name)

    async def _wait_attached(self, name: str, session: GuestSession) -> None:
        timeout_s = self._settings.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(_EXIT_CHECK_S, left)):
                    return await session.attached()
            except TimeoutError:
                pass
            except SandboxLost as error:
                raise SandboxUnavailable(f"a sandbox did not start: {error}.", "See: rlm doctor") from error
            if (ended := await self._engine.wait_exit(name, 1.0)) is not None:
                raise SandboxUnavailable(
                    f"a sandbox ended before it attached, with status {ended.exit_code}.",
                    "Rebuild the image (make image), and see: rlm doctor",
                )
        raise SandboxUnavailable(
            f"a sandbox did not attach within start_timeout_s={timeout_s:g}.",
            "Raise RLM_START_TIMEOUT_S, or see whether the host is overloaded.",
        )

    def _spec(self, name: str, directory: Path, policy: Policy, identity: int) -> ContainerSpec:
        target = policy.mount_target.value
        return ContainerSpec(
            name=name,
            image_id=self._image_id,
            policy=policy,
            directory=directory,
            identity=identity,
            environment={
                # No file of the image knows the user by its number: getpass.getuser() asks these first.
                "USER": "sandbox",
                "LOGNAME": "sandbox",
                "RLM_ADDRESS": f"unix:{target}/{SOCKET_NAME}",
                "RLM_MAX_LIFETIME_S": f"{self._settings.max_lifetime_s:.0f}",
            },
            labels={OWNER_LABEL: self._owner, STATE_LABEL: self._state.id},
        )

    def _session_limits(self) -> SessionLimits:
        settings = self._settings
        return SessionLimits(
            cell_timeout_s=settings.cell_timeout_s,
            cell_grace_s=settings.cell_grace_s,
            silence_timeout_s=settings.silence_timeout_s,
            output_head_bytes=settings.output_head_bytes,
            output_tail_bytes=settings.output_tail_bytes,
        )


async def _placed(source: Path, target: Path) -> None:
    # The link is not made in a thread: waking one takes longer.
    if not _linked(source, target):
        await asyncio.to_thread(_copy, source, target)


def _linked(source: Path, target: Path) -> bool:
    """A hard link shares the file with no copy; contexts are never written to again."""
    try:
        os.link(source, target)
        target.chmod(0o644)
    except FileNotFoundError:
        raise SandboxUnavailable(f"the context {source.name} is no longer there.") from None
    except OSError:
        return False  # another file system, or one without links
    return True


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
        target.chmod(0o644)
    except OSError as error:
        raise SandboxUnavailable(f"the context could not be copied to {target.parent}: {error.strerror}.") from error
