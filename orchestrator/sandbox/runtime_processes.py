"""Ends what a start that failed has left on this host: gVisor's own processes outlive a create that does not end, and
with the shim that made them an engine that was killed meanwhile.

Only those that name one of our containers by its full id, only where that container is gone, and only on the engine's
own host; elsewhere there is nothing to see.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

logger = logging.getLogger(__name__)

_PROGRAMS = (b"runsc", b"runsc-sandbox", b"runsc-gofer", b"containerd-shim-runc-v2")
_PROC = Path("/proc")


def end_runtime_processes(container_id: str, proc: Path = _PROC) -> list[int]:
    """Kills the runtime's processes of a container that has been removed; returns their ids.

    Processes that this user may not signal are left, and logged.
    """
    ended = []
    for entry in proc.iterdir():
        if entry.name.isdecimal() and _belongs(entry, container_id.encode()):
            try:
                os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself
            except PermissionError:
                logger.warning("process %s of a removed sandbox could not be ended: not ours to signal", entry.name)
                continue
            ended.append(int(entry.name))
    return ended


def _belongs(entry: Path, container_id: bytes) -> bool:
    try:
        arguments = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False  # it has ended
    program = os.path.basename(arguments[0])
    # The container's id is an argument by itself, as the OCI runtime command line has it, or names the bundle's folder.
    named = any(container_id in argument.split(b"/") for argument in arguments)
    return len(container_id) == 64 and program in _PROGRAMS and named
