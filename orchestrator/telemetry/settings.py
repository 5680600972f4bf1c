"""What is told of a process's runs, and to whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import InvalidInput

LOOPBACK = "127.0.0.1"


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, name: str = "--metrics") -> Address:
        """`PORT` (on loopback), `HOST:PORT` or `[IPV6]:PORT`; port 0 is any free one. Raises `InvalidInput`."""
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        unbracketed = ":" in host and not text.strip().startswith("[")
        if not (port.isascii() and port.isdigit() and int(port) < 65_536) or (colon and not host) or unbracketed:
            raise InvalidInput(
                name,
                f"must be PORT, HOST:PORT or [IPV6]:PORT; it is {text!r}.",
                "For example 9464, which only this host can reach, or 0.0.0.0:9464.",
            )
        return cls(host or LOOPBACK, int(port))

    @property
    def is_loopback(self) -> bool:
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name is whatever a resolver says


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """`metrics` None: none are served. They have neither TLS nor a token, so that beyond loopback they take
    `metrics_in_the_clear`. `log_format` None: logging is left as it is.

    `secrets` (the API keys) never appear in logs and traces. `models` always have a label of their own in metrics, of
    others the first `max_models`. `content` puts queries, prompts, answers, code and output into logs and traces.
    """

    metrics: Address | None = None
    metrics_in_the_clear: bool = False
    log_format: LogFormat | None = None
    log_level: str = "info"
    content: bool = False
    secrets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    max_models: int = 20

    def __post_init__(self) -> None:
        """Raises `InvalidInput` for an address at which others would read, or change on the way, what is told."""
        if self.metrics is not None and not self.metrics.is_loopback and not self.metrics_in_the_clear:
            raise InvalidInput(
                "--metrics",
                f"{self.metrics} is not on this machine's loopback, and whoever reaches it reads them, in the clear.",
                "Give --metrics-in-the-clear on a network of your own, or scrape through a proxy with TLS.",
            )


def traces_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for traces: an exporter, or an address to export to."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != "none"
    return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
