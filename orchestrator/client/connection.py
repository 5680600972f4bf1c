"""A channel to a server: how it is secured, what is sent again, and gRPC's exceptions renamed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from orchestrator.errors import InvalidInput, RLMError, ServiceFailed, ServiceFailure
from orchestrator.wire.addresses import TcpAddress, UnixAddress, parse_address
from orchestrator.wire.caps import MAX_METADATA_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES
from orchestrator.wire.statuses import error_of

T = TypeVar("T")
DETAILS_KEY = "grpc-status-details-bin"
# CANCELLED too: a server that goes down cancels what it has in hand, and our own cancellation is no status.
PASSING = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_TLS = "https://"


class Connection:
    """Belongs to the event loop in which its first call is made.

    `server` is unix:/path, or host:port: in the clear on this machine's loopback, by TLS anywhere else, and by TLS
    when it begins with https:// or `ca` (a PEM file of the authorities to trust) is given.

    Raises `InvalidInput`.
    """

    def __init__(self, server: str, token: str | None, ca: Path | None, retry_s: float) -> None:
        address = parse_address(server.removeprefix(_TLS).rstrip("/"), "server")
        self.server = server
        self._tls = ca is not None or server.startswith(_TLS)
        if isinstance(address, TcpAddress) and not address.is_loopback:
            self._tls = True
        if self._tls and isinstance(address, UnixAddress):
            raise InvalidInput("server", "a Unix socket has no TLS.", "Leave `ca` out.")
        self._target = str(address)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._ca = ca
        self._retry_s = retry_s
        self._channel: grpc.aio.Channel | None = None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InvalidInput("token", "has printable ASCII characters only.", "Give it as it was printed.")

    @property
    def channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            options: list[tuple[str, int | str]] = [
                ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
                ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.keepalive_time_ms", 60_000),  # a server that is gone without a word is noticed
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.enable_retries", 0),  # what may be sent again is decided here, call by call
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 10_000),  # gRPC's name for how long one try to connect may take
                ("grpc.max_reconnect_backoff_ms", 2_000),
                ("grpc.use_local_subchannel_pool", 1),
            ]
            if self._target.startswith("unix:"):
                options.append(("grpc.default_authority", "localhost"))  # a path is no valid one
            if self._tls:
                credentials = grpc.ssl_channel_credentials(self._roots())
                self._channel = grpc.aio.secure_channel(self._target, credentials, options)
            else:
                self._channel = grpc.aio.insecure_channel(self._target, options)
        return self._channel

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def unary(self, call: Any, request: Any, timeout_s: float | None, *, again: bool) -> Any:
        """`again`: it does no harm to send it twice, so it is sent again while the server cannot be reached."""

        async def once() -> Any:
            return await call(request, timeout=timeout_s, metadata=self._metadata)

        return await self.retried(once, again=again)

    async def retried(self, once: Callable[[], Awaitable[T]], *, again: bool = True) -> T:
        """Raises what the library would raise."""
        waits = Waits(self._retry_s if again else 0.0)
        while True:
            try:
                return await once()
            except grpc.aio.AioRpcError as error:
                if not await waits.wait(error):
                    raise self.renamed(error) from error

    def waits(self) -> Waits:
        return Waits(self._retry_s)

    def stream(self, call: Any, request: Any) -> AsyncIterator[Any]:
        """A call with streamed responses. Cancelling its reader cancels it."""
        started: AsyncIterator[Any] = call(request, metadata=self._metadata)
        return started

    def renamed(self, error: grpc.aio.AioRpcError) -> RLMError:
        """What the library would raise."""
        details, text = _details(error), error.details() or ""
        if error.code() is not grpc.StatusCode.UNAVAILABLE or details is not None:
            return error_of(error.code().value[0], text, details)
        # gRPC's own, with its own words for it: no server has said anything.
        if any(word in text.lower() for word in ("handshake", "certificate", "verification")):
            detail = f"no secure connection to {self.server}: {text}"
            remedy = "Is it a server with TLS? The authorities to trust: `ca`, RLM_SERVER_CA."
        elif "connect" in text and "closed" in text:
            detail, remedy = (
                f"what listens at {self.server} hangs up.",
                "Does it want TLS? Then write https://HOST:PORT.",
            )
        elif "connect" in text or "resolving" in text:
            detail, remedy = f"no server answers at {self.server}.", "Start one: rlm serve"
        else:
            detail, remedy = f"the connection to {self.server} was lost ({text}).", ""
        return ServiceFailed(ServiceFailure.UNREACHABLE, detail, remedy)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def _roots(self) -> bytes | None:
        if self._ca is None:
            return None
        try:
            return self._ca.read_bytes()
        except OSError as error:
            raise InvalidInput("ca", f"{self._ca} cannot be read: {error.strerror}.") from error


class Waits:
    """Growing random waits between tries, until the time for them is used up."""

    def __init__(self, total_s: float) -> None:
        self._left_s = total_s
        self._next_s = _FIRST_WAIT_S

    async def wait(self, error: grpc.aio.AioRpcError) -> bool:
        """False when another try makes no sense, or comes too late."""
        if error.code() not in PASSING:
            return False
        wait_s = max(random.uniform(self._next_s / 2, self._next_s), min(_asked_wait_s(error), _LONGEST_WAIT_S))
        self._next_s = min(self._next_s * 2, _LONGEST_WAIT_S)
        if wait_s > self._left_s:
            return False
        self._left_s -= wait_s
        await asyncio.sleep(wait_s)
        return True


def _details(error: grpc.aio.AioRpcError) -> bytes | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return value
    return None


def _asked_wait_s(error: grpc.aio.AioRpcError) -> float:
    try:
        status = status_pb2.Status.FromString(_details(error) or b"")
    except DecodeError:
        return 0.0
    info = error_details_pb2.RetryInfo()
    return next((info.retry_delay.ToMilliseconds() / 1000 for each in status.details if each.Unpack(info)), 0.0)
