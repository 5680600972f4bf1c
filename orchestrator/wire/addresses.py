"""Where a service listens, and where a client looks for it."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InvalidInput

_PATH_MAX = 107  # sun_path holds 108 bytes with the final NUL, unix(7)
_FORMS = "Write unix:/path/to/socket, or host:port, such as 127.0.0.1:7443."


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether what is said there stays on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name is whatever a resolver says


Address = UnixAddress | TcpAddress


def parse_address(text: str, name: str = "--address") -> Address:
    """Raises `InvalidInput` calling it `name`."""
    if text.startswith("unix:"):
        path = Path("/" + text.removeprefix("unix:").lstrip("/")) if text.startswith("unix:/") else Path(text[5:])
        path = path.absolute()
        if text == "unix:" or len(os.fsencode(path)) > _PATH_MAX:
            raise InvalidInput(name, f"a socket's path has 1 to {_PATH_MAX} bytes; it is {text!r}.", _FORMS)
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise InvalidInput(name, f"is not an address: {text!r}.", _FORMS)
    if ":" in host and not text.startswith("["):
        raise InvalidInput(name, f"an IPv6 address stands in brackets; it is {text!r}.", "Write it like [::1]:7443.")
    return TcpAddress(host, int(port))
