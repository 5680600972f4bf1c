"""Switches on what the settings and the environment ask for."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from orchestrator.errors import InvalidInput
from orchestrator.events import Sink
from orchestrator.folds.redaction import Redactor
from orchestrator.telemetry.formats import JsonLines, TextLines
from orchestrator.telemetry.logs import RunLog, logging_to
from orchestrator.telemetry.loop_lag import watched_loop
from orchestrator.telemetry.run_sink import RunSink
from orchestrator.telemetry.settings import Address, LogFormat, TelemetrySettings, traces_wanted

if TYPE_CHECKING:
    from orchestrator.telemetry.metrics import Metrics
    from orchestrator.telemetry.traces import Tracing

_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What is switched on. `metrics_at` is where metrics are served."""

    redact: Redactor
    content: bool = False
    log_events: bool = False
    metrics: Metrics | None = None
    metrics_at: Address | None = None
    tracing: Tracing | None = None

    def sinks(self, carrier: Mapping[str, str] | None = None, name: str | None = None) -> tuple[Sink, ...]:
        """Sinks for one run, or for runs one after another; concurrent ones need sinks of their own.

        `carrier` may hold the caller's trace context (W3C `traceparent`, `tracestate`), such as a call's metadata.
        `name` is what lines of the log call it by that come without a run, such as those of a kept sandbox.
        """
        metrics = self.metrics.run() if self.metrics is not None else None
        trace = self.tracing.run(carrier) if self.tracing is not None else None
        log = RunLog(content=self.content, name=name) if self.log_events else None
        if metrics is None and trace is None and log is None:
            return ()
        ids = trace.ids if trace is not None else lambda _span_id: None
        return (RunSink(metrics=metrics, trace=trace, trace_ids=ids, log=log, failed=self._failed, redact=self.redact),)

    def _failed(self, consumer: str) -> None:
        if self.metrics is not None:
            self.metrics.telemetry_errors.labels(consumer).inc()

    def watch_sandboxes(self, *, in_use: Callable[[], float], idle: Callable[[], float]) -> None:
        """Shows these in the gauges of sandboxes. Both are called from another thread."""
        if self.metrics is not None:
            self.metrics.watch_sandboxes(in_use=in_use, idle=idle)


@contextmanager
def open(
    settings: TelemetrySettings, *, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None
) -> Iterator[Telemetry]:
    """Metrics, traces and logs for the block, as `settings` and the OTEL_* variables say.

    Within a running event loop, that loop's lag is measured. Logs go to `stream`, standard error by default.

    Raises `InvalidInput` for an address that cannot be had, or a library that is not installed.
    """
    redact = Redactor(settings.secrets)
    if settings.log_level.lower() not in _LEVELS:
        raise InvalidInput("--log-level", f"must be one of {', '.join(_LEVELS)}; it is {settings.log_level!r}.")
    with ExitStack() as stack:
        metrics, metrics_at = _metrics(settings, stack)
        if settings.log_format is not None:
            formatter = _FORMATTERS[settings.log_format](redact)
            dropped = metrics.log_line_dropped if metrics is not None else _ignore
            stack.enter_context(logging_to(stream or sys.stderr, formatter, settings.log_level, dropped))
        yield Telemetry(
            redact=redact,
            content=settings.content,
            log_events=settings.log_format is not None,
            metrics=metrics,
            metrics_at=metrics_at,
            tracing=_tracing(settings, environ, redact, stack),
        )


_FORMATTERS: dict[LogFormat, Callable[[Redactor], logging.Formatter]] = {
    LogFormat.JSON: JsonLines,
    LogFormat.TEXT: TextLines,
}


def _metrics(settings: TelemetrySettings, stack: ExitStack) -> tuple[Metrics | None, Address | None]:
    if settings.metrics is None:
        return None, None
    try:
        from orchestrator.telemetry.exposition import serve_metrics
        from orchestrator.telemetry.metrics import Metrics
    except ImportError as error:
        raise _missing("--metrics", error) from None
    metrics = Metrics(settings.models, settings.max_models)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        pass  # a library's caller: the runs' loop is another thread's
    else:
        stack.enter_context(watched_loop(metrics.loop_lag.observe, loop=loop))
    return metrics, stack.enter_context(serve_metrics(metrics.registry, settings.metrics))


def _tracing(
    settings: TelemetrySettings, environ: Mapping[str, str], redact: Redactor, stack: ExitStack
) -> Tracing | None:
    if not traces_wanted(environ):
        return None
    try:
        from orchestrator.telemetry import traces
    except ImportError as error:
        raise _missing("OTEL_EXPORTER_OTLP_ENDPOINT", error) from None
    return stack.enter_context(traces.tracing(environ, redact, content=settings.content))


def _ignore() -> None:
    """Nobody counts."""


def _missing(what: str, error: ImportError) -> InvalidInput:
    return InvalidInput(
        what, f"needs a library that is not installed ({error.name}).", "pip install 'rlm-orchestrator[telemetry]'"
    )
