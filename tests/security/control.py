"""Control runs: the same attack with the hardening off. Where it does not succeed, the probe proves nothing.

The control container is root with all capabilities, without seccomp and AppArmor, with a writable root and the host's
network. So what is tried there must be harmless in itself: wrong arguments behind an open door, never a real write.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

# Runs an attack in a child of its own, which may change namespaces or its personality without harm to the next one.
IN_A_CHILD = """
import os, sys
def in_a_child(code):
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.dup2(into, 1)
            sys.stdout = open(1, "w", closefd=False)
            exec(code, {"__name__": "attack"})
            sys.stdout.flush()
        except BaseException as error:
            os.write(into, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(child, 0)
    return said.strip() or (f"SIGNAL {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "")
"""
_SERVE = IN_A_CHILD + "import json\nfor line in sys.stdin: print(json.dumps(in_a_child(json.loads(line))), flush=True)"
_UNCONFINED = [f"--security-opt={what}=unconfined" for what in ("seccomp", "apparmor", "systempaths")]
_OPEN = ("--user=0", *_UNCONFINED)
# Not ALL: an engine that runs without some capability itself cannot give that one.
_CAPABILITIES = ("SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_BOOT", "SYS_TIME", "NET_ADMIN", "DAC_READ_SEARCH")


class Control:
    """Attacks go in on its standard input, one JSON text a line; what they print comes back likewise."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, code: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(code).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, "the control container has ended"
        return str(json.loads(line))


@asynccontextmanager
async def open_control(image: str, *flags: str, network: str = "host") -> AsyncIterator[Control]:
    """`flags` are further options of `docker run`."""
    name = f"rlm-control-{secrets.token_hex(4)}"
    command = ["docker", "run", "--rm", "-i", f"--name={name}", "--pull=never", f"--network={network}", *_OPEN, *flags]
    command += [f"--cap-add={capability}" for capability in _CAPABILITIES]
    command += ["--memory=512m", "--pids-limit=128", "--entrypoint=/opt/rlm/python", image, "-I", "-c", _SERVE]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Control(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@contextmanager
def bridge() -> Iterator[tuple[str, str]]:
    """The name of a bridge of its own, and the host's address on it. It is `--internal`: nothing leaves the host."""
    name = f"rlm-control-{secrets.token_hex(4)}"
    _docker("network", "create", "--internal", name)
    try:
        yield name, _docker("network", "inspect", name, "--format", "{{(index .IPAM.Config 0).Gateway}}")
    finally:
        _docker("network", "rm", name)


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()
