"""Attacks on a real sandbox before any model's code runs in one: whatever the policy says, does this host hold it?

A service probes at its start and refuses to serve when a mandatory probe finds a door open; `allow_weaker` is said
explicitly, logged, and shown to every client.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.policy import Policy
from orchestrator.seams import OutputSink, SandboxFactory
from orchestrator.values import CellResult, CellStatus

logger = logging.getLogger(__name__)

_HELD = "held"
_TIME_LIMIT_S = 30.0
_PRELUDE = """
import ctypes, errno, os, resource, socket
_libc = ctypes.CDLL(None, use_errno=True)
def _refused(action):
    try: action()
    except OSError: return True
    return False
def _status(name):
    with open("/proc/self/status") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith(name + ":")), "")
def _words(*paths):
    for path in paths:
        try: return open(path).read().split()
        except OSError: pass
    return []
def _at_most(most, words):
    return bool(words) and words[0] not in ("max", "-1") and float(words[0]) <= most
def _read_only(path):
    # gVisor tells it in its list of mounts alone.
    mounts = (line.split() for line in open("/proc/self/mounts"))
    told = [fields[3].split(",") for fields in mounts if fields[1] == path]
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY) or bool(told) and "ro" in told[-1]
def _processors():
    quota = _words("/sys/fs/cgroup/cpu.max") or _words(
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us") + _words(
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us")
    return [str(int(quota[0]) / int(quota[1]))] if len(quota) == 2 and quota[0] not in ("max", "-1") else []
def _swap():
    if len(open("/proc/swaps").readlines()) < 2: return ["0"]
    beside = _words("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
    return _words("/sys/fs/cgroup/memory.swap.max") or [str(int(beside[0]) - _memory)] if beside else []
def _connects(address):
    with socket.socket() as opened:
        opened.setblocking(False)
        # Begun is as good as there: nothing that has a way out says at once that there is none.
        return opened.connect_ex(address) in (0, errno.EINPROGRESS, errno.EAGAIN)
def _empty(path):
    try: return not (os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))
    except OSError: return True
def _in_a_child(action):
    child = os.fork()
    if child == 0: os._exit(0 if action() else 1)
    return os.waitpid(child, 0)[1] == 0
"""


@dataclass(frozen=True, slots=True)
class Promised:
    """What a sandbox is to hold: the policy that the engine was given, on what kind of runtime."""

    policy: Policy
    gvisor: bool
    mapped_users: bool = False

    def prelude(self) -> str:
        policy = self.policy
        users = (policy.users_of_a_mapped_engine if self.mapped_users else policy.users).value
        known: dict[str, object] = {
            "_users": (users.first, users.first + users.count),
            "_memory": policy.memory_mib.value << 20,
            "_pids": policy.pids.value,
            "_cpus": policy.cpus.value,
            "_tmp": policy.tmp_mib.value << 20,
            "_files": policy.open_files.value,
            "_signals": policy.pending_signals.value,
            "_queues": policy.message_queue_bytes.value,
            "_masked": policy.masked_paths.value,
            "_closed": policy.closed_mounts.value,
        }
        return _PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in known.items())


class InGvisor(Enum):
    """gVisor answers system calls by its own kernel, where some doors lead nowhere, and some cannot be looked at."""

    SAME = "as elsewhere"
    TOLD = "as a weakness that is told, and does not refuse"
    NOT_TRIED = "not at all"


@dataclass(frozen=True, slots=True)
class Probe:
    """`code` is an expression that is true where the door is shut. `name` starts with its id in docs/security.md."""

    name: str
    code: str
    mandatory: bool = True
    in_gvisor: InGvisor = InGvisor.SAME
    gvisors_code: str = ""  # where its kernel shows the same thing elsewhere


PROBES = (
    Probe("P4 the code has a user of its own, and no group beside it", "os.getuid() == os.geteuid() == os.getgid() == "
          "os.getegid() and _users[0] <= os.getuid() < _users[1] and set(os.getgroups()) <= {os.getgid()}"),
    Probe("P3 no capability is held", "all(int(_status(n) or '0', 16) == 0 for n in ('CapPrm', 'CapEff', 'CapBnd'))"),
    # gVisor does not tell it; no file of the image is setuid (P1).
    Probe("P2 no new privileges can be had", "_status('NoNewPrivs') == '1'", in_gvisor=InGvisor.NOT_TRIED),
    Probe("P5 the root file system is read-only", "_read_only('/') and _refused(lambda: os.mkdir('/probe'))"),
    Probe("P5 what the policy closes is closed", "all(_read_only(path) for path in _closed) and "
          "_refused(lambda: os.openpty())"),
    Probe("N13 the socket's directory is read-only", "_read_only('/rlm')"),
    Probe("N11 there is no interface but loopback", "{line.split(':')[0].strip() for line in open('/proc/net/dev') "
          "if ':' in line} <= {'lo'}"),
    Probe("N2 there is no way out", "not _connects(('203.0.113.1', 80))"),
    Probe("P7 there is no engine's socket", "not any(os.path.exists(p) for p in ('/var/run/docker.sock', "
          "'/run/docker.sock', '/run/containerd/containerd.sock', '/run/podman/podman.sock'))"),
    Probe("K3 no user namespace can be had, in which code could mount", "not _in_a_child(lambda: "
          "_libc.unshare(0x10000000) == 0)", in_gvisor=InGvisor.NOT_TRIED),
    Probe("K29 the host's switches cannot be written", "all(_read_only(path) for path in ('/proc/sys',))",
          in_gvisor=InGvisor.NOT_TRIED),
    # gVisor's /proc does not heed PR_SET_DUMPABLE: code that reads the agent may speak in its place, and finds no key.
    Probe("K7 the agent's memory and environment cannot be read", "_refused(lambda: open('/proc/1/environ').read())",
          in_gvisor=InGvisor.TOLD),
    Probe("C25 no limit can be set on the agent", "_refused(lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, "
          "resource.prlimit(1, resource.RLIMIT_NOFILE)))", in_gvisor=InGvisor.TOLD),
    Probe("K18 a socket family that nobody needs is not there", "_refused(lambda: socket.socket(16, 3))",
          in_gvisor=InGvisor.NOT_TRIED),
    Probe("K14 io_uring is not there", "_libc.syscall(425, 1, 0) == -1 and ctypes.get_errno() in "
          "(errno.EPERM, errno.ENOSYS)", in_gvisor=InGvisor.NOT_TRIED),
    Probe("P11 no key is in the environment", "not any('API_KEY' in name or 'TOKEN' in name for name in os.environ)"),
    Probe("R3 memory is limited", "_at_most(_memory, _words('/sys/fs/cgroup/memory.max', "
          "'/sys/fs/cgroup/memory/memory.limit_in_bytes'))",
          gvisors_code="os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') <= _memory"),
    # gVisor shows no groups of the host's: there, the engine's own complaints when it makes a container are all.
    Probe("R1 processes are limited", "_at_most(_pids, _words('/sys/fs/cgroup/pids.max', "
          "'/sys/fs/cgroup/pids/pids.max'))", in_gvisor=InGvisor.NOT_TRIED),
    Probe("R20 processors are limited", "_at_most(_cpus * 1.01, _processors())", in_gvisor=InGvisor.NOT_TRIED),
    Probe("R14 open files are limited", "0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= _files"),
    Probe("R40 pending signals and queues are limited", "resource.getrlimit(resource.RLIMIT_SIGPENDING) == "
          "(_signals, _signals) and resource.getrlimit(resource.RLIMIT_MSGQUEUE) == (_queues, _queues)"),
    Probe("R3 memory cannot be swapped out, to the neighbors' cost", "_at_most(0, _swap())", mandatory=False,
          in_gvisor=InGvisor.NOT_TRIED),
    # Where the engine cannot set a size, the memory limit is what ends a flood.
    Probe("R8 /tmp is limited in size", "0 < os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize <= _tmp",
          mandatory=False),
    Probe("K38 what tells of the host is masked", "all(_empty(path) for path in _masked)", mandatory=False,
          in_gvisor=InGvisor.NOT_TRIED),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Findings:
    """The names of the probes that found a door open."""

    mandatory: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    tried: int = 0

    @property
    def weaknesses(self) -> tuple[str, ...]:
        return self.mandatory + self.other


class Runs(Protocol):
    """A sandbox, as far as the probes use it."""

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult: ...


class Promising(SandboxFactory, Protocol):
    """A factory that says what its sandboxes are to hold."""

    async def promised(self) -> Promised: ...


async def probe(sandboxes: Promising) -> Findings:
    """Tries all probes in one fresh sandbox, over the ordinary session.

    Raises `SandboxUnavailable`, `SandboxLost`.
    """
    promised = await sandboxes.promised()
    async with sandboxes.open(None, None) as sandbox:
        return await probe_in(sandbox, promised)


async def probe_in(sandbox: Runs, promised: Promised) -> Findings:
    """The same in a sandbox that is there already. Raises `SandboxLost`."""
    opened: dict[bool, list[str]] = {True: [], False: []}
    prelude = promised.prelude()
    for each in tried(promised):
        code = each.gvisors_code if promised.gvisor and each.gvisors_code else each.code
        result = await sandbox.run(f"{prelude}\nprint({_HELD!r} if ({code}) else 'open')", time_limit_s=_TIME_LIMIT_S)
        # A probe that could not be tried to its end proves nothing, and counts as an open door.
        if result.status is not CellStatus.OK or result.stdout.text.strip() != _HELD:
            told = promised.gvisor and each.in_gvisor is InGvisor.TOLD
            opened[each.mandatory and not told].append(each.name)
    return Findings(tuple(opened[True]), tuple(opened[False]), len(tried(promised)))


def tried(promised: Promised) -> tuple[Probe, ...]:
    """The probes that tell something on this runtime."""
    return tuple(each for each in PROBES if not (promised.gvisor and each.in_gvisor is InGvisor.NOT_TRIED))


async def require_safe(sandboxes: Promising, *, allow_weaker: bool = False) -> tuple[str, ...]:
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
