"""N: no way out, and code learns it at once. In the control container, on the host's network, the same reaches us."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from orchestrator.sandbox.context_store import FileContextStore
from tests.security.arena import Arena
from tests.security.conftest import Found
from tests.security.control import Control, bridge, open_control

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

HAS_IPV6 = os.path.exists("/proc/net/if_inet6")
AT_ONCE = {
    "ENETUNREACH",
    "EHOSTUNREACH",
    "EADDRNOTAVAIL",
    "EPERM",
    "EACCES",
    "ENODEV",
    "ECONNREFUSED",
    "EAFNOSUPPORT",
    "EINVAL",
}
# resolv.conf(5): one second is the shortest time-out that a resolver can be given, five are the default; our own
# sockets have five too. What a refusal may take beyond that grows with what any failing call takes just now.
_TIMED = """
import errno, os, socket, time
def failing():
    began = time.monotonic()
    try: socket.socket(socket.AF_UNIX).connect("/nowhere")
    except OSError: return time.monotonic() - began
trivial = max(failing() for _ in range(20))
began = time.monotonic()
try:
    {action}
    said = "ALLOWED"
except socket.gaierror as error:
    said = "EAI_AGAIN" if error.errno in (socket.EAI_AGAIN, socket.EAI_NONAME) else str(error)
except TimeoutError: said = "TIMEOUT"
except OSError as error: said = errno.errorcode.get(error.errno, str(error.errno))
print(said, "at once" if time.monotonic() - began < 1 + 100 * trivial else "late")
"""
# Without a clock: what would wait for anybody's answer says EINPROGRESS.
_NOT_WAITING = "s = socket.socket(); s.setblocking(False); s.connect(({address!r}, {port}))"


def timed(action: str) -> str:
    return _TIMED.format(action=action)


@contextmanager
def listener(kind: socket.SocketKind, address: str = "127.0.0.1") -> Iterator[int]:
    """The port of something on the host that one may want to reach."""
    with socket.socket(socket.AF_INET, kind) as opened:
        opened.bind((address, 0))
        if kind is socket.SOCK_STREAM:
            opened.listen()
        yield opened.getsockname()[1]


@asynccontextmanager
async def bridged(image: str, *flags: str) -> AsyncIterator[tuple[Control, Control, str]]:
    """Two containers on a bridge of their own, which leads nowhere else, and the host's address on it."""
    with bridge() as (network, gateway):
        flags = (*flags, f"--add-host=host.docker.internal:{gateway}")
        async with open_control(image, *flags, network=network) as one, open_control(image, network=network) as other:
            yield one, other, gateway


async def test_N1_names_do_not_resolve_and_code_learns_it_at_once(
    roomy: Arena, sandbox_image: str, found: Found
) -> None:
    resolve = "socket.getaddrinfo('secrets-in-a-name.example.com', 80)"
    assert await roomy.says(timed(resolve)) == "EAI_AGAIN at once"
    found("EAI_AGAIN")
    async with bridged(sandbox_image) as (attacked, name_server, _):
        address = await name_server.says("import socket; print(socket.gethostbyname(socket.gethostname()))")
        with_server = f"open('/etc/resolv.conf', 'w').write('nameserver {address}'); {resolve}"
        # It says NXDOMAIN to all (RFC 1035, 4.1.1), so that nobody waits.
        serve = (
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))\n"
            "query, whence = s.recvfrom(512)\n"
            "s.sendto(query[:2] + bytes([129, 131]) + query[4:], whence); print(query)"
        )
        serving = asyncio.create_task(name_server.says(serve))
        while not serving.done():  # it may not have bound its port yet: then the resolver hears so at once
            await attacked.says(timed(with_server))
        assert "secrets-in-a-name" in await serving


async def test_N2_no_TCP_out(roomy: Arena, control: Control, found: Found) -> None:
    for attack in (
        "socket.create_connection(('203.0.113.1', 80), 5)",
        _NOT_WAITING.format(address="203.0.113.1", port=80),
    ):
        errno, _, when = (await roomy.says(timed(attack))).partition(" ")
        assert errno in AT_ONCE
        assert when == "at once"
        found(errno)
    with listener(socket.SOCK_STREAM) as port:
        action = timed(f"socket.create_connection(('127.0.0.1', {port}), 5)")
        assert await roomy.says(action) == "ECONNREFUSED at once"
        assert await control.says(action) == "ALLOWED at once"


async def test_N3_no_UDP_out(roomy: Arena, control: Control, found: Found) -> None:
    send = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ({address!r}, {port}))"
    errno, _, when = (await roomy.says(timed(send.format(address="203.0.113.1", port=53)))).partition(" ")
    assert errno in AT_ONCE
    assert when == "at once"
    found(errno)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.setblocking(False)
        action = timed(send.format(address="127.0.0.1", port=opened.getsockname()[1]))
        await roomy.says(action)
        with pytest.raises(BlockingIOError):
            opened.recv(1)
        await control.says(action)
        assert opened.recv(1) == b"x"


async def test_N4_no_ICMP(roomy: Arena, control: Control, found: Found) -> None:
    action = timed(
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); s.sendto(bytes([8, 0, 247, 255] + [0] * 4), "
        "('127.0.0.1', 0))"
    )
    errno, _, when = (await roomy.says(action)).partition(" ")
    assert errno in AT_ONCE
    assert when == "at once"
    assert await control.says(action) == "ALLOWED at once"
    found(errno)


async def test_N2_N6_no_gateway_no_host_and_no_metadata(roomy: Arena, sandbox_image: str, found: Found) -> None:
    connect = "socket.create_connection(({address!r}, {port}), 5)"
    async with bridged(sandbox_image) as (attacked, _, gateway):
        with listener(socket.SOCK_STREAM, gateway) as port:
            for address in (gateway, "host.docker.internal"):
                attack = timed(connect.format(address=address, port=port))
                assert await attacked.says(attack) == "ALLOWED at once"
                errno, _, when = (await roomy.says(attack)).partition(" ")
                assert errno in AT_ONCE | {"EAI_AGAIN"}
                assert when == "at once"
                found(errno)
            # What would wait in an open network does not fail at once, so that the probes without a clock tell.
            nobody = timed(_NOT_WAITING.format(address=gateway.rpartition(".")[0] + ".253", port=port))
            assert (await attacked.says(nobody)).split()[0] == "EINPROGRESS"
            assert (await roomy.says(nobody)).split()[0] in AT_ONCE
    for address in ("172.17.0.1", "169.254.169.254"):
        assert (await roomy.says(timed(_NOT_WAITING.format(address=address, port=80)))).split()[0] in AT_ONCE


async def test_N7_no_IPv6_neighbor(roomy: Arena, control: Control, found: Found) -> None:
    # By each interface that there could be.
    attempt = (
        "def attempt(number):\n    try: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', "
        "('fe80::1', 53, 0, number))\n    except OSError as error: return error\n"
    )
    action = "tried = [attempt(number) for number in range(1, 16)]\n    if all(tried): raise tried[0]"
    errno, _, when = (await roomy.says("import socket\n" + attempt + timed(action))).partition(" ")
    opened = (await control.says("import socket\n" + attempt + timed(action))).split()[0]
    assert opened == "ALLOWED" or not HAS_IPV6
    # gVisor takes the datagram; its network stack has nowhere to send it (N11).
    assert errno in AT_ONCE | ({"ALLOWED"} if roomy.gvisor else set())
    assert when == "at once"
    said = errno if errno in AT_ONCE else "dropped by gVisor's own stack"
    found(said if opened == "ALLOWED" else f"{said}; not on this kernel")


async def test_N9_N10_one_sandboxs_listeners_are_not_anothers(roomy: Arena, found: Found) -> None:
    async with roomy.sandboxes.open(None, None) as other:
        opened = await other.run(
            "import socket\ntcp = socket.create_server(('127.0.0.1', 7777))\n"
            "abstract = socket.socket(socket.AF_UNIX); abstract.bind(chr(0) + 'here'); abstract.listen()"
        )
        assert opened.error is None
        look = (
            "import socket\nlisteners = ((socket.AF_INET, ('127.0.0.1', 7777)), (socket.AF_UNIX, chr(0) + 'here'))\n"
            "for family, address in listeners:\n"
            "    try: socket.socket(family).connect(address); print('CONNECTED')\n"
            "    except ConnectionRefusedError: print('refused')"
        )
        assert await roomy.says(look) == "refused\nrefused"
        # The control is the sandbox itself: there, they can be reached.
        assert (await other.run(look)).stdout.text == "CONNECTED\nCONNECTED\n"
    found("ECONNREFUSED")


async def test_N11_the_only_interface_is_loopback(roomy: Arena, control: Control, found: Found) -> None:
    names = "import socket\nprint([name for _, name in socket.if_nameindex()])"
    read = "print([line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])"
    assert await roomy.says(read) == "['lo']"
    assert len(eval(await control.says(names), {"__builtins__": {}})) > 1
    found("lo")


def _open_directory(path: Path) -> Path:
    path.chmod(0o777)
    (path / "context").write_text("x")
    return path


CHANGES = {
    "file": "open('/rlm/file', 'w')",
    "fifo": "os.mkfifo('/rlm/fifo')",
    "symlink": "os.symlink('/etc/passwd', '/rlm/link')",
    "link": "os.link('/rlm/context', '/rlm/hard')",
    "unlink": "os.unlink('/rlm/context')",
    "socket": "socket.socket(socket.AF_UNIX).bind('/rlm/sock')",
}


async def test_N13_nothing_can_be_made_or_removed_in_the_socket_directory(
    roomy: Arena, sandbox_image: str, tmp_path: Path, found: Found
) -> None:
    store = FileContextStore(roomy.sandboxes.context_dir)
    context = await store.put("x")
    async with roomy.sandboxes.open(context, None) as sandbox:
        said = {name: (await sandbox.run(timed(call))).stdout.text.split()[0] for name, call in CHANGES.items()}
    await store.drop(context)
    # Of the two locks, the mount's is what answers under runc; gVisor asks for the rights first.
    assert set(said.values()) <= ({"EROFS", "EACCES", "EPERM"} if roomy.gvisor else {"EROFS"}), said
    found(" ".join(sorted(set(said.values()))))
    # The same directory with both locks off.
    async with open_control(sandbox_image, f"--volume={_open_directory(tmp_path)}:/rlm") as control:
        for name in sorted(CHANGES, key="unlink".__eq__):  # the last one takes away what the others need
            assert (await control.says(timed(CHANGES[name]))).split()[0] == "ALLOWED", name


# A connection each, that says what is not HTTP/2; the host listens for the agent, which dials for each new worker.
DIALS = """
import socket
ends = set()
for _ in range(50):
    with socket.socket(socket.AF_UNIX) as dialed:
        dialed.settimeout(10)
        dialed.connect('/rlm/host.sock')
        try:
            dialed.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n')
            while dialed.recv(4096): pass
        except ConnectionError: pass
        ends.add('hung up')
print(*ends)
"""


async def test_N13_who_dials_the_hosts_socket_beside_the_agent_gains_nothing(roomy: Arena, found: Found) -> None:
    """The sandbox goes on, and so does its neighbor: `says` looks."""
    assert await roomy.says(DIALS) == "hung up"
    found("hung up")
