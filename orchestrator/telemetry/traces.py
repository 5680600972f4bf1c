"""A run as one OpenTelemetry trace: run > rlm > iteration > model call | cell > batch > query > model call | rlm ...

The spans are the events' own, with the same parents and times. They are exported from a thread of the SDK; when the
collector is slow or away they are dropped, never waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from orchestrator import events as ev
from orchestrator.errors import InvalidInput
from orchestrator.folds.printable import one_line
from orchestrator.folds.redaction import Redact
from orchestrator.telemetry import genai
from orchestrator.telemetry.span_names import Attributes, closing, opening

_FLUSH_S = 5.0
_PARENT = TraceContextTextMapPropagator()  # https://www.w3.org/TR/trace-context/


@dataclass(frozen=True, slots=True)
class Tracing:
    """What the traces of all runs share. Never the process's global provider: a program may have one of its own."""

    provider: trace.TracerProvider
    redact: Redact
    content: bool = False

    def run(self, carrier: Mapping[str, str] | None = None) -> RunTrace:
        """A sink for one run at a time. `carrier` has the caller's `traceparent` and `tracestate`, if it has a trace.

        One that is malformed is as if it were not there.
        """
        tracer = self.provider.get_tracer("rlm-orchestrator", version("rlm-orchestrator"))
        return RunTrace(tracer, self, {name.lower(): value for name, value in (carrier or {}).items()})


class RunTrace:
    """Opens and ends the spans of one run as its records come."""

    def __init__(self, tracer: trace.Tracer, tracing: Tracing, carrier: Mapping[str, str]) -> None:
        self._tracer = tracer
        self._redact = tracing.redact
        self._content = tracing.content
        self._carrier = carrier
        self._open: dict[int, trace.Span] = {}

    def ids(self, span_id: int) -> tuple[str, str] | None:
        """Trace and span id, as hex, of a span that is open."""
        found = self._open.get(span_id)
        if found is None:
            return None
        context = found.get_span_context()
        return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)

    def __call__(self, record: ev.Record) -> None:
        match record.event:
            case ev.ModelTextStreamed() | ev.CellPrinted():
                return
            case ev.ModelRetried() as retry:
                self._tell(
                    record,
                    "retry",
                    {
                        "rlm.attempt": retry.attempt,
                        "rlm.wait_s": retry.wait_s,
                        "rlm.reason": self._line(retry.reason),
                    },
                )
            case ev.NoticeGiven(text=text):
                self._tell(record, "notice", {"rlm.text": self._line(text)})
            case _:
                self._begin(record)
                self._end(record)

    def _begin(self, record: ev.Record) -> None:
        found = opening(record.event, content=self._content)
        if found is None:
            return
        parent = self._open.get(record.parent_id) if record.parent_id is not None else None
        context = trace.set_span_in_context(parent) if parent is not None else _PARENT.extract(self._carrier)
        self._open[record.span_id] = self._tracer.start_span(
            found.name,
            context=context,
            kind=trace.SpanKind.CLIENT if found.to_model else trace.SpanKind.INTERNAL,
            attributes={"rlm.depth": record.depth, **self._safe(found.attributes)},
            start_time=_nanoseconds(record.at),
        )

    def _end(self, record: ev.Record) -> None:
        found = closing(record.event, content=self._content)
        if found is None or (span := self._open.pop(record.span_id, None)) is None:
            return
        span.set_attributes({"rlm.outcome": found.outcome.value, **self._safe(found.attributes)})
        if found.outcome is ev.Outcome.FAILED:
            if genai.ERROR_TYPE not in found.attributes:
                span.set_attribute(genai.ERROR_TYPE, "_OTHER")
            span.set_status(trace.StatusCode.ERROR, self._line(found.error))
        span.end(_nanoseconds(record.at))
        if isinstance(record.event, ev.RunEnded):
            self._abandon(record.at)

    def _abandon(self, at: float) -> None:
        """A span that nobody ended would never be exported, and its children's parent be unknown."""
        while self._open:
            _, span = self._open.popitem()
            span.set_attribute("rlm.outcome", "unknown")
            span.end(_nanoseconds(at))

    def _tell(self, record: ev.Record, name: str, attributes: Attributes) -> None:
        if span := self._open.get(record.span_id):
            span.add_event(name, attributes, _nanoseconds(record.at))

    def _line(self, text: str) -> str:
        return self._redact(one_line(text, 300))

    def _safe(self, attributes: Attributes) -> Attributes:
        return {name: self._redact(each) if isinstance(each, str) else each for name, each in attributes.items()}


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)


@contextmanager
def tracing(environ: Mapping[str, str], redact: Redact, *, content: bool) -> Iterator[Tracing]:
    """Exports as the OTEL_* variables say; ends in at most a few seconds, also when the collector is away.

    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_SPAN_* and OTEL_EXPORTER_OTLP_*
    are read by the SDK, from the process's environment. Raises `InvalidInput` for an exporter that is not here.
    """
    exporter = _exporter(environ)
    named = "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or environ.get("OTEL_SERVICE_NAME")
    about = {"service.version": version("rlm-orchestrator")} | ({} if named else {"service.name": "rlm-orchestrator"})
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracing(provider, redact, content)
    finally:
        # The exporter tries again for as long as a minute: the process's end does not wait for that.
        flush = threading.Thread(target=provider.shutdown, name="rlm-traces-flush", daemon=True)
        flush.start()
        flush.join(_FLUSH_S)


def _exporter(environ: Mapping[str, str]) -> SpanExporter:
    name = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise InvalidInput("OTEL_TRACES_EXPORTER", f"must be otlp, console or none; it is {name!r}.")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol != "grpc":
        raise InvalidInput(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            f"must be grpc; it is {protocol!r}.",
            "Collectors take gRPC on port 4317.",
        )
    return OTLPSpanExporter()
