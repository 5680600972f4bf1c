"""The processes beneath the agent: starting the worker, ending everything, and telling what a death was of."""

from __future__ import annotations

# For `signal` and `socket`: see agent_loop.
import _signal  # type: ignore[import-not-found]
import _socket
import os
import time

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_settings import Settings

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CONTROL, _ASKS = 60, 61  # the worker's descriptors of its two sockets: above those that are open here at any time
_IGNORED_BY_PYTHON = (_signal.SIGPIPE, _signal.SIGXFSZ)
EXIT_CUT_OFF = 97  # as in worker_channel: the worker cannot reach the agent any more


def harden() -> None:
    """Closes this process to others of its user: its memory, environment and descriptors (see prctl(2)).

    Raises:
        OSError: the kernel refused.
    """
    import ctypes  # not before the host has heard of us: its import is a tenth of the start

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
    # As process 1 it inherits orphans anyway; elsewhere it must ask for them, or they would escape it.
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class WorkerProcess:
    """A running worker and the agent's ends of its socket and pipes, all non-blocking."""

    def __init__(self, pid: int, control: _socket.socket, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.control = control
        self.stdout = stdout
        self.stderr = stderr

    @classmethod
    def start(cls, settings: Settings, environment: Mapping[str, str], asks: _socket.socket) -> WorkerProcess:
        """Starts a worker in a session of its own, with nothing of the agent's but four connections.

        `asks` is the one on which it asks the host; it is closed here.

        Raises:
            OSError: there is no process, memory or descriptor left for it.
        """
        ours, theirs = _socket.socketpair()
        stdout, stdout_in = os.pipe()
        stderr, stderr_in = os.pipe()
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker_main.py")
        arguments = [str(_CONTROL), str(_ASKS), str(settings.niceness), settings.site]
        try:
            # Not `subprocess`: its import costs more than the start. Other descriptors close by themselves.
            pid = os.posix_spawn(
                settings.python,
                [settings.python, "-I", "-X", "utf8", script, *arguments],
                _worker_environment(settings, environment),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL),
                    (os.POSIX_SPAWN_DUP2, asks.fileno(), _ASKS),
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, stdout_in, 1),
                    (os.POSIX_SPAWN_DUP2, stderr_in, 2),
                ],
                setsid=True,
                setsigdef=_IGNORED_BY_PYTHON,
            )
        except OSError:
            ours.close()
            os.close(stdout)
            os.close(stderr)
            raise
        finally:
            theirs.close()
            asks.close()
            os.close(stdout_in)
            os.close(stderr_in)
        for descriptor in (ours.fileno(), stdout, stderr):
            os.set_blocking(descriptor, False)
        return cls(pid, ours, stdout, stderr)

    def interrupt(self) -> None:
        """Sends SIGINT to the main thread, and to no other, nor to what the code has started.

        The thread it is that has to leave a call that blocks. The kernel would also choose the main thread for a signal
        to the process, but not where that one has a signal pending already (see complete_signal() in kernel/signal.c).
        """
        import ctypes

        ctypes.CDLL(None).tgkill(
            self.pid, self.pid, _signal.SIGINT
        )  # one that has just ended is no matter: it is reaped here

    def close(self) -> None:
        """Closes the agent's ends."""
        self.control.close()
        os.close(self.stdout)
        os.close(self.stderr)


def _worker_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith(("RLM_", "GRPC_"))}
    # Python that the code starts finds the same libraries.
    return kept | {"PYTHONPATH": settings.site, "PYTHONUTF8": "1"}


def reap() -> list[tuple[int, int]]:
    """All children that have ended, as (process id, exit code); the code is negative for a signal."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def kill_everything() -> None:
    """Kills all processes but this one; as process 1 in one stroke, elsewhere all descendants."""
    if os.getpid() == 1:
        try:
            os.kill(-1, _signal.SIGKILL)
        except ProcessLookupError:
            pass  # there are none
        return
    killed: set[int] = set()
    while fresh := _descendants().keys() - killed:
        for pid in fresh:
            try:
                os.kill(pid, _signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself
        killed |= fresh


def _descendants() -> dict[int, int]:
    """By process id: the clock ticks that each has used, with those of its children that it has reaped."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        # See proc(5): what follows the name begins with its state and its parent; utime to cstime are 11 to 14.
        children.setdefault(int(fields[1]), []).append((int(name), sum(map(int, fields[11:15]))))
    found: dict[int, int] = {}
    stack = [os.getpid()]
    while stack:
        for child, ticks in children.get(stack.pop(), []):
            found[child] = ticks
            stack.append(child)
    return found


class ProcessorTimes:
    """What the processes beneath the agent use of the processors, in seconds from no particular moment."""

    def __init__(self, worker: int) -> None:
        # As clock_getcpuclockid(3) makes it, which Python has not: another process's CPUCLOCK_SCHED.
        self._clock = (~worker << 3) | 2

    def worker(self) -> float:
        """The worker's own; costs one system call."""
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0  # it has ended

    def everyone(self) -> float:
        """The worker's and that of all that it has started, in clock ticks; walks through /proc."""
        return sum(_descendants().values()) / _TICKS_PER_S


class OutOfMemory:
    """Tells the kernel's OOM killer from other senders of SIGKILL, where its count can be read."""

    def __init__(self, settings: Settings) -> None:
        self._files = [
            os.path.join(settings.cgroup, "memory.events"),  # cgroup version 2
            os.path.join(settings.cgroup, "memory", "memory.oom_control"),  # version 1
        ]
        self._seen = self._count()

    def happened(self) -> bool:
        """Whether the killer has struck since the last call; true when nobody can tell."""
        count, seen = self._count(), self._seen
        self._seen = count
        return count is None or seen is None or count > seen

    def _count(self) -> int | None:
        for path in self._files:
            try:
                with open(path) as file:
                    counts = dict(line.split() for line in file)
                return int(counts["oom_kill"])
            except (OSError, ValueError, KeyError):
                continue
        return None


class Death:
    """`cause` is "exited", "crashed", "out_of_memory", "timed_out", "interrupted" or "protocol"."""

    def __init__(self, cause: str, code: int = 0) -> None:
        self.cause = cause
        self.code = code


def death_of(exit_code: int, killed_for: str, memory: OutOfMemory) -> Death:
    """What a worker died of; `killed_for` is the cause when the agent has killed it, else empty."""
    oom = memory.happened()
    if killed_for and exit_code == -_signal.SIGKILL:
        return Death(killed_for)
    if exit_code == EXIT_CUT_OFF:
        return Death("protocol")
    if exit_code >= 0:
        return Death("exited", exit_code)
    if exit_code == -_signal.SIGKILL and oom:
        return Death("out_of_memory")
    return Death("crashed", -exit_code)
