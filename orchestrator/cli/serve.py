"""`rlm serve`: runs and sandboxes for whoever may call, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import sandbox_options
from orchestrator.cli.screen import say, warn
from orchestrator.cli.services import current
from orchestrator.errors import InvalidInput

if TYPE_CHECKING:
    from orchestrator.config import Config
    from orchestrator.hosting.settings import HostingSettings
    from orchestrator.server.listening import ListenSettings
    from orchestrator.server.serve import Service
    from orchestrator.telemetry import TelemetrySettings

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Serve runs and sandboxes over gRPC.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="unix:/path or host:port; repeatable. By default the socket rlm.sock in the state directory.",
)
@click.option("--tls-cert", type=_PATH, help="The certificate with its chain, PEM.")
@click.option("--tls-key", type=_PATH, help="Its key, PEM.")
@click.option("--tokens", type=_PATH, help="Who may call, TOML: see `rlm token new`.")
@click.option("--store", type=_PATH, help="Where runs are kept. By default store/rlm.db in the state directory.")
@click.option(
    "--drain-grace",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="For runs to end by themselves when it is told to stop.",
)
@click.option("--allow-weaker", is_flag=True, help="Serve though sandboxes here do not hold all that they must.")
@click.option("--metrics", metavar="[HOST:]PORT", help="Serve Prometheus metrics, on this machine only without a HOST.")
@click.option("--metrics-in-the-clear", is_flag=True, help="Serve them to whoever reaches an address beyond loopback.")
@click.option("--log-format", type=click.Choice(["json", "text"]), help="Log lines of runs and server on stderr.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Of --log-format.",
)
@click.option("--max-run-depth", type=click.IntRange(1, 16), metavar="N", help="Most depth that a run may choose.")
@click.option("--keep-runs", type=click.IntRange(min=0), metavar="N", help="Runs that are kept after their end.")
@click.option("--keep-mib", type=click.IntRange(min=1), metavar="N", help="Runs, events and uploads together.")
@click.option("--keep-days", type=click.FloatRange(min=0, min_open=True), metavar="D", help="For how long.")
@sandbox_options
def serve(
    addresses: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    tokens: Path | None,
    store: Path | None,
    drain_grace: float,
    allow_weaker: bool,
    metrics: str | None,
    metrics_in_the_clear: bool,
    log_format: str | None,
    log_level: str,
    max_run_depth: int | None,
    keep_runs: int | None,
    keep_mib: int | None,
    keep_days: float | None,
    **overrides: object,
) -> None:
    """Serve runs and sandboxes over gRPC, in the clear on a Unix socket or this machine's loopback only.

    Anywhere else it takes --tls-cert, --tls-key and --tokens. SIGTERM or Ctrl-C lets runs end for --drain-grace
    seconds, cancels the rest, removes all containers and exits with 0; a second one ends the process at once.
    """
    from orchestrator.hosting.settings import HostingSettings
    from orchestrator.server.serve import default_store
    from orchestrator.telemetry import Address, LogFormat, TelemetrySettings

    config = current().load(overrides)
    listen = _listen(config, addresses, tls_cert, tls_key, tokens)
    usual = HostingSettings()
    hosting = HostingSettings(
        max_depth=max_run_depth or min(usual.max_depth, config.capacity),
        max_runs=keep_runs,
        max_bytes=keep_mib * 1024 * 1024 if keep_mib is not None else None,
        max_age_s=keep_days * 86_400 if keep_days is not None else None,
    )
    telemetry = TelemetrySettings(
        metrics=Address.parse(metrics) if metrics is not None else None,
        metrics_in_the_clear=metrics_in_the_clear,
        log_format=LogFormat(log_format) if log_format is not None else None,
        log_level=log_level,
    )
    asyncio.run(_serve(config, store or default_store(config), hosting, listen, drain_grace, telemetry, allow_weaker))


def _listen(
    config: Config, addresses: tuple[str, ...], tls_cert: Path | None, tls_key: Path | None, tokens: Path | None
) -> ListenSettings:
    from orchestrator.server.listening import ListenSettings, Tls
    from orchestrator.server.serve import default_address
    from orchestrator.server.tokens import Tokens
    from orchestrator.wire.addresses import parse_address

    if (tls_cert is None) != (tls_key is None):
        missing = "--tls-key" if tls_key is None else "--tls-cert"
        raise InvalidInput(missing, "is missing: a certificate and its key go together.")
    return ListenSettings(
        addresses=tuple(parse_address(each) for each in addresses or (default_address(config),)),
        tls=Tls(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None,
        tokens=Tokens.load(tokens) if tokens is not None else None,
    )


async def _serve(
    config: Config,
    store: Path,
    hosting: HostingSettings,
    listen: ListenSettings,
    drain_grace_s: float,
    telemetry: TelemetrySettings,
    allow_weaker: bool,
) -> None:
    from orchestrator.server.serve import serve as serve_until

    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            # No cleanup: what is left is reclaimed by the next start, or by `rlm cleanup`.
            try:
                say("Stopped at once. `rlm cleanup` removes what is left.")
            finally:
                os._exit(128 + signal.SIGTERM)
        stop.set()  # first: to tell may fail
        warn("no new runs; those under way get their time. Once more stops at once.", label="Stopping")

    def ready(service: Service) -> None:
        for sentence in service.cleaned:
            warn(sentence, label="Cleaned up")
        for address in service.addresses:
            say(f"Serving on {address}")
        if service.metrics is not None:
            say(f"Metrics at {service.metrics}")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    await serve_until(
        config,
        store,
        hosting,
        listen,
        stop=stop,
        drain_grace_s=drain_grace_s,
        ready=ready,
        telemetry=telemetry,
        allow_weaker=allow_weaker,
    )
    say("Stopped.")
