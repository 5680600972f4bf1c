"""R34, R35, C25: what a sandbox uses counts for itself, and it cannot put itself above others, or others beneath."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.sandbox.launcher import LiveSandbox
from orchestrator.values import CellResult
from tests.security.arena import Arena
from tests.security.conftest import Found

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

_BIG = 384 << 20  # bytes: more than all memory of a small sandbox
_READ_ALL = """
with open("/rlm/big", "rb", buffering=0) as file:
    size = 0
    while piece := file.read(1 << 20): size += len(piece)
def first(*paths): return next((open(path).read() for path in paths if __import__("os").path.exists(path)), "")
lines = first("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat").splitlines()
stat = dict(line.split() for line in lines)
used = first("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
print(size, stat.get("file") or stat.get("cache"), used)
"""
_TRY = """
import ctypes, errno, os, resource
libc = ctypes.CDLL(None, use_errno=True)
def said(action):
    try: result = action()
    except OSError as error: return errno.errorcode[error.errno]
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "ALLOWED"
"""
SELF = {
    "nice": ("os.setpriority(os.PRIO_PROCESS, 0, -20)", "EACCES"),
    "real time": ("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))", "EPERM"),
    "mlock": ("libc.mlock(ctypes.c_char_p(bytes(8 << 20)), ctypes.c_size_t(8 << 20))", "ENOMEM"),
    "mlockall": ("libc.mlockall(3)", "ENOMEM"),
    # Which of the host's processors it runs on is its own matter: how much of them it gets is not.
    "affinity": ("os.sched_setaffinity(0, os.sched_getaffinity(0))", "ALLOWED"),
}
AGENT = {
    "limit of its processor time": "resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))",
    "limit of its files": "resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
    "nice": "os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "nice, by the user": "os.setpriority(os.PRIO_USER, 0, 19)",
    "nice, by its group": "os.setpriority(os.PRIO_PGRP, 1, 19)",
    "idle": "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    "parameters": "os.sched_setparam(1, os.sched_param(0))",
    "attributes": "libc.syscall(314, 1, ctypes.create_string_buffer(bytes([48]) + bytes(47)), 0)",
    "affinity": "os.sched_setaffinity(1, {0})",
    "score": "open('/proc/1/oom_score_adj', 'w').write('1000')",
}


def _evicted(path: Path) -> None:
    """Fresh, on the disk, and in nobody's cache: whoever reads it brings it in."""
    with path.open("wb") as file:
        for _ in range(_BIG >> 20):
            file.write(os.urandom(1 << 10) * 1024)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    path.chmod(0o644)


async def test_R34_page_cache_counts_for_the_sandbox_that_made_it(small: Arena, found: Found) -> None:
    async with small.sandboxes.open(None, None) as attacked:
        assert isinstance(attacked, LiveSandbox)
        _evicted(attacked.directory / "big")
        result = await attacked.run(_READ_ALL, time_limit_s=120)
    assert result.error is None, result.error.traceback
    assert result.death is None
    if small.gvisor:
        # Its own process reads the file, whose group is the sandbox's; from inside, nothing tells of it.
        assert result.stdout.text.split()[0] == str(_BIG)
        found("contained")
        return
    size, cached, used = map(int, result.stdout.text.split())
    assert size == _BIG
    assert cached > 64 << 20, "somebody else paid for what it read"
    assert used <= 256 << 20
    found("counted, and reclaimed from it")


async def test_R35_no_priority_above_the_neighbors(small: Arena, found: Found) -> None:
    lines = "\n".join(f"print({name!r}, said(lambda: {action}), sep='=')" for name, (action, _) in SELF.items())
    said = dict(line.split("=") for line in (await small.says(_TRY + lines)).splitlines())
    if small.gvisor:
        # Its own kernel keeps these as notes and passes none of them to the host's.
        found(f"refused: {', '.join(name for name in said if said[name] != 'ALLOWED')}; none of it reaches the host")
        assert said.keys() == SELF.keys()
        return
    assert said == {name: expected for name, (_, expected) in SELF.items()} | {"nice": said["nice"]}
    assert said["nice"] in ("EACCES", "EPERM")
    found("EACCES, EPERM, ENOMEM")


async def test_C25_no_limit_or_priority_can_be_set_on_the_agent(small: Arena, found: Found) -> None:
    """A limit on processor time would have the kernel kill process 1, which no signal from inside does."""
    lines = "\n".join(f"print({name!r}, said(lambda: {action}), sep='=')" for name, action in AGENT.items())
    outcome = await small.attack(_TRY + lines)
    if small.gvisor:
        # Its kernel lets code set these on any process of the user: see docs/security.md.
        found("**not held**: the sandbox can be ended")
        return
    assert isinstance(outcome, CellResult), outcome
    said = dict(line.split("=") for line in outcome.stdout.text.splitlines())
    assert said.keys() == AGENT.keys()
    assert set(said.values()) <= {"EPERM", "EACCES"}, said
    found("EPERM")
