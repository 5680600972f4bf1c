"""The way to the host: connections to its socket."""

from __future__ import annotations

import _socket
import time

_RETRY_S = 0.02


def dial(address: str, timeout_s: float) -> _socket.socket:
    """Connects to `unix:path`, or `host:port`; tries again until somebody listens. The socket blocks.

    Raises:
        TimeoutError: nobody does.
        ValueError: this is no address.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _connect(address, max(0.001, deadline - time.monotonic()))
        except OSError:
            # The host may listen a moment after the container starts.
            if time.monotonic() + _RETRY_S > deadline:
                raise TimeoutError(f"nobody listens at {address}") from None
        time.sleep(_RETRY_S)


def _connect(address: str, timeout_s: float) -> _socket.socket:
    if not address.startswith("unix:"):
        import socket  # with names and the rest of TCP

        host, separator, port = address.removeprefix("dns:").lstrip("/").rpartition(":")
        if not separator or not port.isdigit():
            raise ValueError(f"{address!r} is neither unix:path nor host:port")
        connected: _socket.socket = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        connected = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout_s)
            connected.connect(address.removeprefix("unix:").removeprefix("//"))
        except BaseException:
            connected.close()
            raise
    connected.setblocking(True)
    return connected
