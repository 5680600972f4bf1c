"""R40: what the kernel counts by user is no sandbox's to take from another. With one user for all, the attack works."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.policy import Rule, Users, load_policy
from orchestrator.sandbox.settings import SandboxSettings
from tests.security.arena import Arena
from tests.security.conftest import Found

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

_LIBC = "import array, ctypes, errno, fcntl, os, signal, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
# Pages of pipes in children that stay; inotify instances, descriptors in flight, and timers (signals that wait).
HOARD = (
    _LIBC
    + """
ready, tell = os.pipe()
for _ in range(6):
    if os.fork() == 0:
        kept = []
        try:
            while len(kept) < 500: kept.append(os.pipe())
        except OSError: pass
        os.write(tell, b"1")
        while True: signal.pause()
for _ in range(6): os.read(ready, 1)
watches = []
while (watch := libc.inotify_init()) >= 0 and len(watches) < 400: watches.append(watch)
sockets, flying = [], 0
try:
    while flying < 2400:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); sockets += [a, b]
        for _ in range(4):
            a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 200))]); flying += 200
except OSError: pass
timer, timers = ctypes.c_int(), 0
while libc.syscall(222, 0, None, ctypes.byref(timer)) == 0 and timers < 5000: timers += 1
print(len(watches) > 50, flying > 800, timers > 500)
"""
)
LOOK = (
    _LIBC
    + """
def said(fails): return errno.errorcode[ctypes.get_errno()] if fails else "ok"
into = os.pipe()[1]
found = ["ok" if fcntl.fcntl(into, 1032) == 65536 else f"pipes of {fcntl.fcntl(into, 1032)}"]
found.append(said(libc.inotify_init() < 0))
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
try: a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]); found.append("ok")
except OSError as error: found.append(errno.errorcode[error.errno])
found.append(said(libc.syscall(222, 0, None, ctypes.byref(ctypes.c_int())) != 0))
print(*found, sep="; ")
"""
)


async def _neighbor_says(sandboxes: DockerSandboxes) -> tuple[str, str]:
    """What a neighbor finds beside a hoard; and what the hoard found of each kind."""
    async with sandboxes.open(None, None) as attacked, sandboxes.open(None, None) as neighbor:
        assert (await neighbor.run(LOOK)).stdout.text == "ok; ok; ok; ok\n"
        hoarded = await attacked.run(HOARD, time_limit_s=60)
        assert hoarded.error is None, hoarded.error.traceback
        return (await neighbor.run(LOOK)).stdout.text.strip(), hoarded.stdout.text.strip()


@asynccontextmanager
async def _of_one_user(image: str) -> AsyncIterator[DockerSandboxes]:
    policy = load_policy()
    one = Rule(Users(policy.users.value.first, 1), "the control run of a test: all sandboxes have one user")
    state = Path(f"/var/tmp/rlm-test-{secrets.token_hex(4)}")
    settings = SandboxSettings(state_dir=state, image=image, runtime="runc", pool_max=0)
    try:
        async with DockerSandboxes.start(settings, policy=msgspec.structs.replace(policy, users=one)) as sandboxes:
            yield sandboxes
    finally:
        shutil.rmtree(state, ignore_errors=True)


async def test_R40_what_the_kernel_counts_by_user_is_not_taken_from_a_neighbor(
    roomy: Arena, sandbox_image: str, found: Found
) -> None:
    said, hoarded = await _neighbor_says(roomy.sandboxes)
    assert said == "ok; ok; ok; ok"
    found("each its own")
    if roomy.gvisor:
        return  # its kernel is a sandbox's own, whatever the user
    assert hoarded == "True True True"
    async with _of_one_user(sandbox_image) as sandboxes:
        said, _ = await _neighbor_says(sandboxes)
    assert said == "pipes of 8192; EMFILE; ETOOMANYREFS; EAGAIN"
