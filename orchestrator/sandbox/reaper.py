"""A small process beside the orchestrator that cleans up after it when it is killed.

It reads one line of JSON from its standard input, and then nothing until the pipe ends, which happens when the
orchestrator dies by whatever means. A line "goodbye" before that says that there is nothing to do. It has a session of
its own, so that a signal to the orchestrator's whole process group leaves it alive.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchestrator.sandbox.forks import not_for_children

if TYPE_CHECKING:
    from orchestrator.sandbox.engine import Engine
    from orchestrator.sandbox.state_dir import StateDir

logger = logging.getLogger(__name__)

_GOODBYE = b"goodbye\n"
# A create that the dead orchestrator sent may still be under way in the engine: it is looked for this long.
_LOOK_FOR_S = 15.0
_LOOK_EVERY_S = 1.5
_GIVE_UP_S = 120.0
# What it needs of the environment, and nothing else: the key has no business here.
_VARIABLES = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")

_IMPORT_ROOT = str(Path(__file__).resolve().parents[2])


class Charge(msgspec.Struct, frozen=True):
    """Whom to clean up after."""

    state_dir: str
    owner: str
    pid: int


@asynccontextmanager
async def standing_by(state: StateDir, owner: str) -> AsyncIterator[None]:
    """Has a reaper stand by for the block; it is sent home when the block ends, by an exception too."""
    environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    environment["PYTHONPATH"] = _IMPORT_ROOT
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "orchestrator.sandbox.reaper",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
    stdin = process.stdin
    assert stdin is not None
    charge = Charge(str(state.path), owner, os.getpid())
    try:
        stdin.write(msgspec.json.encode(charge) + b"\n")
        with not_for_children(stdin.transport.get_extra_info("pipe").fileno()):
            yield
    finally:
        try:
            stdin.write(_GOODBYE)
            stdin.close()
            await process.wait()
        except (BrokenPipeError, ConnectionResetError):
            logger.warning("the reaper of this process ended before it")


async def reap(engine: Engine, state: StateDir, charge: Charge) -> None:
    """Removes all that the owner has, until no more of it turns up, and leaves a note for the next start."""
    from orchestrator.errors import SandboxUnavailable
    from orchestrator.sandbox.reclaim import remove_owned, remove_owned_dirs

    began = time.monotonic()
    containers: list[str] = []
    trouble = ""
    while True:
        try:
            found = await remove_owned(engine, state, charge.owner)
            containers += [name for name in found if name not in containers]
            trouble = ""
        except SandboxUnavailable as error:
            found, trouble = [], str(error)
        elapsed = time.monotonic() - began
        if (elapsed > _LOOK_FOR_S and not found and not trouble) or elapsed > _GIVE_UP_S:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    directories = remove_owned_dirs(state, charge.owner)
    if trouble:
        state.leave_note(
            charge.owner, f"process {charge.pid} was killed; its sandboxes could not be removed: {trouble}"
        )
        return
    if containers or directories:
        state.leave_note(
            charge.owner,
            f"process {charge.pid} was killed; its reaper removed {len(containers)} containers "
            f"and {len(directories)} directories",
        )
    state.forget_owner(charge.owner)


def main() -> int:
    line = sys.stdin.buffer.readline()
    try:
        charge = msgspec.json.decode(line, type=Charge)
    except msgspec.DecodeError:
        return 2
    if sys.stdin.buffer.readline() == _GOODBYE:
        return 0
    # Not before it is needed: docker takes 20 MiB, and this process waits for days.
    from orchestrator.sandbox.engine_docker import DockerEngine
    from orchestrator.sandbox.state_dir import open_state_dir

    async def work() -> None:
        engine = DockerEngine(call_timeout_s=30)
        try:
            await reap(engine, open_state_dir(Path(charge.state_dir)), charge)
        finally:
            await engine.close()

    asyncio.run(work())
    return 0


if __name__ == "__main__":
    sys.exit(main())
