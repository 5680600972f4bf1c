"""Attacks on a real sandbox before any model's code runs in one: whatever the policy says, does this host hold it?

A service probes at its start and refuses to serve when a mandatory probe finds a door open; `allow_weaker` is said
explicitly, logged, and shown to every client.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from orchestrator.errors import SandboxUnavailable
from orchestrator.seams import OutputSink, SandboxFactory
from orchestrator.values import CellResult, CellStatus

logger = logging.getLogger(__name__)

_HELD = "held"
_TIME_LIMIT_S = 30.0
_PRELUDE = """
import ctypes, errno, os, socket
_libc = ctypes.CDLL(None, use_errno=True)
def _refused(action):
    try: action()
    except OSError: return True
    return False
def _status(name):
    with open("/proc/self/status") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith(name + ":")), "")
_gvisor = "gvisor" in open("/proc/version").read().lower() or os.uname().release == "4.4.0"
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """`code` is an expression that is true where the door is shut. `name` starts with its id in docs/security.md."""

    name: str
    code: str
    mandatory: bool = True


PROBES = (
    Probe("P4 the code is not root", "0 not in (os.getuid(), os.geteuid(), os.getgid())"),
    Probe("P3 no capability is held", "all(int(_status(n) or '0', 16) == 0 for n in ('CapPrm', 'CapEff', 'CapBnd'))"),
    Probe("P2 no new privileges can be had", "_status('NoNewPrivs') in ('1', '') or _gvisor"),
    Probe("P5 the root file system is read-only", "_refused(lambda: os.mkdir('/probe')) and "
          "(_gvisor or bool(os.statvfs('/').f_flag & os.ST_RDONLY))"),
    Probe("N13 the socket's directory is read-only", "_refused(lambda: open('/rlm/probe', 'w'))"),
    Probe("N11 there is no interface but loopback", "{line.split(':')[0].strip() for line in open('/proc/net/dev') "
          "if ':' in line} <= {'lo'}"),
    Probe("N2 there is no way out", "_refused(lambda: socket.create_connection(('203.0.113.1', 80), 3))"),
    Probe("P7 there is no engine's socket", "not any(os.path.exists(p) for p in ('/var/run/docker.sock', "
          "'/run/docker.sock', '/run/containerd/containerd.sock', '/run/podman/podman.sock'))"),
    Probe("K1 nothing can be mounted", "_libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) != 0"),
    Probe("K29 the host's switches cannot be written",
          "_refused(lambda: os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY))"),
    Probe("K7 the agent cannot be traced or read", "_gvisor or _refused(lambda: open('/proc/1/environ', 'rb').read())"),
    Probe("K18 a socket family that nobody needs is not there", "_gvisor or _refused(lambda: socket.socket(16, 3))"),
    Probe("K14 io_uring is not there", "_gvisor or _libc.syscall(425, 1, 0) == -1 and ctypes.get_errno() in "
          "(errno.EPERM, errno.ENOSYS)"),
    Probe("P11 no key is in the environment", "not any('API_KEY' in name or 'TOKEN' in name for name in os.environ)"),
    # gVisor's /proc does not heed PR_SET_DUMPABLE: code that reads the agent may speak in its place, and finds no key.
    Probe("K7 the agent's memory and environment cannot be read", "_refused(lambda: open('/proc/1/environ').read())",
          mandatory=False),
    # Where the engine cannot set a size, the memory limit is what ends a flood.
    Probe("R8 /tmp is limited in size", "os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize < 1 << 34",
          mandatory=False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Findings:
    """The names of the probes that found a door open."""

    mandatory: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def weaknesses(self) -> tuple[str, ...]:
        return self.mandatory + self.other


class Runs(Protocol):
    """A sandbox, as far as the probes use it."""

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult: ...


async def probe(sandboxes: SandboxFactory) -> Findings:
    """Tries all probes in one fresh sandbox, over the ordinary session.

    Raises `SandboxUnavailable`, `SandboxLost`.
    """
    async with sandboxes.open(None, None) as sandbox:
        return await probe_in(sandbox)


async def probe_in(sandbox: Runs) -> Findings:
    """The same in a sandbox that is there already. Raises `SandboxLost`."""
    opened: dict[bool, list[str]] = {True: [], False: []}
    for each in PROBES:
        code = f"{_PRELUDE}\nprint({_HELD!r} if ({each.code}) else 'open')"
        result = await sandbox.run(code, time_limit_s=_TIME_LIMIT_S)
        # A probe that could not be tried to its end proves nothing, and counts as an open door.
        if result.status is not CellStatus.OK or result.stdout.text.strip() != _HELD:
            opened[each.mandatory].append(each.name)
    return Findings(tuple(opened[True]), tuple(opened[False]))


async def require_safe(sandboxes: SandboxFactory, *, allow_weaker: bool = False) -> tuple[str, ...]:
    """Probes, and returns the weaknesses that a client should be shown.

    Raises `SandboxUnavailable`, naming the probes, when a mandatory one finds a door open and `allow_weaker` is not
    given.
    """
    return judge(await probe(sandboxes), allow_weaker=allow_weaker)


def judge(findings: Findings, *, allow_weaker: bool) -> tuple[str, ...]:
    """See `require_safe`."""
    if findings.mandatory and not allow_weaker:
        raise SandboxUnavailable(
            f"sandboxes on this host do not hold what they must: not so is that {'; '.join(findings.mandatory)}.",
            "See docs/security.md and: rlm doctor --probe. To go on all the same, say --allow-weaker.",
        )
    for name in findings.weaknesses:
        logger.warning("a sandbox on this host is weaker than promised: not so is that %s", name)
    return findings.weaknesses
