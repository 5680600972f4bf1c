"""The gRPC server itself: its caps, its ports, and the rule that nothing is said in the clear beyond this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator.errors import InvalidInput
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.hosting.sandbox_desk import SandboxDesk
from orchestrator.protocol.rlm.v1 import (
    run_pb2,
    run_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)
from orchestrator.server.calls import CallCaps, Door, Guard
from orchestrator.server.run_service import RunService
from orchestrator.server.sandbox_service import SandboxService, ServerService
from orchestrator.server.tokens import Tokens
from orchestrator.wire.addresses import Address, TcpAddress, UnixAddress
from orchestrator.wire.caps import MAX_METADATA_BYTES, MAX_REQUEST_BYTES

_HEALTH_S = 2.0
_SERVICES = (
    run_pb2.DESCRIPTOR.services_by_name["RunService"].full_name,
    sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name,
    server_pb2.DESCRIPTOR.services_by_name["ServerService"].full_name,
)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the certificate with its chain, and its key."""

    certificate: Path
    key: Path

    def credentials(self) -> grpc.ServerCredentials:
        """Raises `InvalidInput` when one cannot be read, or they do not go together."""
        parts = []
        for option, path in (("--tls-key", self.key), ("--tls-cert", self.certificate)):
            try:
                parts.append(path.read_bytes())
            except OSError as error:
                raise InvalidInput(option, f"{path} cannot be read: {error.strerror}.") from error
        try:
            # gRPC would say no more than that the port cannot be had. No password: it must not ask at a terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInput(
                "--tls-cert",
                f"{self.certificate} and {self.key} are not a certificate and its key ({error}).",
                "Both are PEM, the key without a password.",
            ) from error
        return grpc.ssl_server_credentials([(parts[0], parts[1])])


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    addresses: tuple[Address, ...]
    tls: Tls | None = None
    tokens: Tokens | None = None
    max_calls: int = 1000  # at a time, at the socket and at the other addresses each; more are RESOURCE_EXHAUSTED
    max_calls_each: int = 250  # of one token
    first_message_s: float = 30.0  # for a request to come whole
    max_streams: int = 256  # of one connection; its client waits with more
    upload_idle_s: float = 60.0  # between two parts of an upload
    stop_grace_s: float = 2.0  # for calls that end by themselves when all runs have ended

    def __post_init__(self) -> None:
        """Raises `InvalidInput` for an address on which others could listen in, or anybody call."""
        for address in self.addresses:
            if isinstance(address, UnixAddress) or address.is_loopback:
                continue
            if self.tls is None:
                raise InvalidInput(
                    "--address",
                    f"{address} is not on this machine's loopback, and without TLS anybody on the way could listen in.",
                    "Give --tls-cert and --tls-key, or listen on 127.0.0.1 or a Unix socket.",
                )
            if self.tokens is None:
                raise InvalidInput(
                    "--address",
                    f"{address} is not on this machine's loopback, and without tokens anybody could run code here.",
                    "Give --tokens; make one with: rlm token new NAME",
                )


class Listening:
    """A server that answers. `addresses` are as bound: a port 0 has become a real one."""

    def __init__(self, addresses: Sequence[Address], guard: Guard, servicer: health.aio.HealthServicer) -> None:
        self.addresses = tuple(addresses)
        self.guard = guard
        self._health = servicer

    async def stop_serving(self) -> None:
        """Tells health watchers NOT_SERVING, for good; calls are still taken."""
        try:
            async with asyncio.timeout(_HEALTH_S):
                await self._health.enter_graceful_shutdown()
        except TimeoutError:
            pass  # a watcher that reads nothing holds the others up: it must not hold up the end


@asynccontextmanager
async def listening(
    runs: RunDesk,
    sandboxes: SandboxDesk,
    info: server_pb2.GetServerInfoResponse,
    settings: ListenSettings,
    weaknesses: Callable[[], Iterable[str]] = lambda: (),
) -> AsyncIterator[Listening]:
    """Serves for the block; then refuses new calls, and ends and awaits those under way.

    Raises `InvalidInput` for an address that cannot be had.
    """
    each = settings.max_calls_each if settings.tokens is not None else None
    caps = CallCaps(each=each, open_to_all=settings.max_calls // 4, first_message_s=settings.first_message_s)
    guard = Guard(settings.tokens, caps)
    servicer = health.aio.HealthServicer()
    for name in _SERVICES:
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    service = RunService(runs, settings.upload_idle_s), SandboxService(sandboxes), ServerService(info, weaknesses)
    # Two servers: whatever comes to a port, the places of the socket are its own.
    servers: dict[bool, grpc.aio.Server] = {}
    bound: list[Address] = []
    for address in settings.addresses:
        local = isinstance(address, UnixAddress)
        if local not in servers:
            servers[local] = _server(guard.door(local=local), settings, servicer, *service)
        bound.append(_bind(servers[local], address, settings.tls))
    for server in servers.values():
        await server.start()
    try:
        yield Listening(bound, guard, servicer)
    finally:
        await asyncio.gather(*(server.stop(settings.stop_grace_s) for server in servers.values()))
        await guard.close()
        for address in bound:
            if isinstance(address, UnixAddress):
                address.path.unlink(missing_ok=True)


def _server(
    door: Door,
    settings: ListenSettings,
    servicer: health.aio.HealthServicer,
    runs: RunService,
    sandboxes: SandboxService,
    info: ServerService,
) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[door], options=_options(settings), maximum_concurrent_rpcs=settings.max_calls
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    run_pb2_grpc.add_RunServiceServicer_to_server(runs, server)
    sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(sandboxes, server)
    server_pb2_grpc.add_ServerServiceServicer_to_server(info, server)
    reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server


def _options(settings: ListenSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", -1),  # ours: bounded where it is made
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.so_reuseport", 0),  # two servers on one port would share its calls by chance
        # A peer that is gone without a word is noticed, and one that pings too often is not put up with.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
        ("grpc.max_connection_idle_ms", 15 * 60_000),
    ]


def _bind(server: grpc.aio.Server, address: Address, tls: Tls | None) -> Address:
    match address:
        case UnixAddress(path=path):
            _make_way(path)
            # Made with its mode, not changed to it: there is no moment in which others could connect.
            old = os.umask(0o177)
            try:
                _add_port(server, address, None)
            finally:
                os.umask(old)
            return address
        case TcpAddress(host=host):
            return TcpAddress(host, _add_port(server, address, tls))


def _add_port(server: grpc.aio.Server, address: Address, tls: Tls | None) -> int:
    try:
        if tls is None:
            return server.add_insecure_port(str(address))
        return server.add_secure_port(str(address), tls.credentials())
    except RuntimeError as error:
        raise InvalidInput(
            "--address", f"{address} cannot be listened on.", "Is it in use, and does it belong to this machine?"
        ) from error


def _make_way(path: Path) -> None:
    """A socket's file outlives a server that was killed; gRPC would also take a living server's away."""
    if not path.parent.is_dir():
        raise InvalidInput("--address", f"there is no folder {path.parent}.", "Make it, with mode 0700.")
    if not path.exists():
        return
    if not path.is_socket():
        raise InvalidInput("--address", f"{path} is there, and is no socket.", "Choose another path.")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise InvalidInput("--address", f"another server listens on {path}.", "Stop it, or choose another address.")
