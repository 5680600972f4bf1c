"""Traces: one run is one trace, with the events' own parents, and without anybody's words."""

from __future__ import annotations

import json

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from orchestrator import events as ev
from orchestrator.errors import InvalidInput
from orchestrator.folds.redaction import Redactor
from orchestrator.telemetry.settings import traces_wanted
from orchestrator.telemetry.traces import Tracing, tracing
from orchestrator.values import Message, Role
from tests.unit.sample_runs import Script, whole_run

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def made(exporter: InMemorySpanExporter, *, content: bool = False) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider, Redactor(["hunter2-hunter2"]), content)


def path(span: ReadableSpan, spans: dict[int, ReadableSpan]) -> tuple[str, ...]:
    above = path(spans[span.parent.span_id], spans) if span.parent and span.parent.span_id in spans else ()
    return (*above, span.name.split()[0])


def spans_of(exporter: InMemorySpanExporter) -> dict[int, ReadableSpan]:
    return {each.context.span_id: each for each in exporter.get_finished_spans() if each.context}


def test_a_run_is_one_trace_with_its_parents(exporter: InMemorySpanExporter) -> None:
    whole_run(made(exporter).run())
    spans = spans_of(exporter)
    assert len({each.context.trace_id for each in spans.values() if each.context}) == 1
    rlm = ("invoke_workflow", "invoke_agent")
    query = (*rlm, "iteration", "execute_tool", "batch", "query")
    expected = [
        ("invoke_workflow",),
        rlm,
        (*rlm, "sandbox"),
        *[(*rlm, "iteration")] * 2,
        *[(*rlm, "iteration", "chat")] * 2,
        *[(*rlm, "iteration", "execute_tool")] * 2,
        query[:-1],
        *[query] * 3,
        *[(*query, "chat")] * 2,
        (*query, "invoke_agent"),
        (*query, "invoke_agent", "sandbox"),
        (*query, "invoke_agent", "iteration"),
        (*query, "invoke_agent", "iteration", "chat"),
    ]
    assert sorted(path(each, spans) for each in spans.values()) == sorted(expected)


def test_a_model_call_says_what_the_conventions_ask(exporter: InMemorySpanExporter) -> None:
    script = Script((made(exporter).run(),))
    script.call(script.run)
    (span,) = exporter.get_finished_spans()
    assert span.name == "chat big"
    assert span.kind is SpanKind.CLIENT
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "big"
    assert attributes["gen_ai.usage.input_tokens"] == 100
    assert attributes["gen_ai.usage.output_tokens"] == 20
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert span.start_time == 1_000 * 10**9


def test_nobody_s_words_are_in_a_trace(exporter: InMemorySpanExporter) -> None:
    whole_run(made(exporter).run())
    told = "".join(each.to_json() for each in exporter.get_finished_spans())
    for word in ("Who did it?", "gardener", "llm_batch(parts)", "seen", "Look.", "Part 1?", "Inner", "no more"):
        assert word not in told


def test_words_are_told_when_asked_for_but_no_secret(exporter: InMemorySpanExporter) -> None:
    script = Script((made(exporter, content=True).run(),))
    script.start("The key is hunter2-hunter2, who did it?")
    span = script.run.child(ev.SpanKind.MODEL)
    span.emit(ev.ModelCallStarted("big", (Message(Role.USER, 'Look: "x"'),)))
    span.emit(ev.ModelCallEnded(ev.Outcome.OK, "Reply", None, None, None, False, "big", 1.0))
    script.end()
    call, run = exporter.get_finished_spans()
    assert json.loads(str((call.attributes or {})["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": 'Look: "x"'}]}
    ]
    assert "who did it?" in run.to_json()
    assert "hunter2" not in run.to_json()


def test_a_caller_s_trace_is_the_parent(exporter: InMemorySpanExporter) -> None:
    whole_run(made(exporter).run({"Traceparent": f"00-{TRACE}-{PARENT}-01"}))
    spans = exporter.get_finished_spans()
    assert {f"{each.context.trace_id:032x}" for each in spans if each.context} == {TRACE}
    (run,) = (each for each in spans if each.name == "invoke_workflow rlm")
    assert run.parent is not None
    assert f"{run.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("bad", ["", "x", f"00-{'0' * 32}-{PARENT}-01", "00-" + "f" * 5000, f"ff-{TRACE}-{PARENT}-01"])
def test_a_malformed_parent_is_none(exporter: InMemorySpanExporter, bad: str) -> None:
    whole_run(made(exporter).run({"traceparent": bad}))
    (run,) = (each for each in exporter.get_finished_spans() if each.name == "invoke_workflow rlm")
    assert run.parent is None


def test_a_failure_is_an_error_with_its_kind_and_a_cancellation_is_not(exporter: InMemorySpanExporter) -> None:
    script = Script((made(exporter).run(),))
    error = "model 'big' failed (rate limited) after 3 attempts: key hunter2-hunter2"
    for outcome in (ev.Outcome.FAILED, ev.Outcome.CANCELLED):
        span = script.run.child(ev.SpanKind.MODEL)
        span.emit(ev.ModelCallStarted("big", ()))
        span.emit(ev.ModelRetried(1, 0.5, "rate_limited: hunter2-hunter2"))
        span.emit(ev.ModelCallEnded(outcome, None, None, None, None, False, "big", 1.0, error))
    failed, cancelled = exporter.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "rate_limited"
    assert "hunter2" not in failed.to_json()
    assert [each.name for each in failed.events] == ["retry"]
    assert cancelled.status.status_code is StatusCode.UNSET
    assert (cancelled.attributes or {})["error.type"] == "cancelled"


def test_a_span_that_nobody_ended_ends_with_its_run(exporter: InMemorySpanExporter) -> None:
    script = Script((made(exporter).run(),))
    script.start()
    script.cell(script.run)
    script.end()
    assert {each.name.split()[0] for each in exporter.get_finished_spans()} == {"invoke_workflow", "execute_tool"}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_standard_variables_switch_traces_on(environ: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(environ) is wanted


@pytest.mark.parametrize(
    "environ", [{"OTEL_TRACES_EXPORTER": "zipkin"}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}]
)
def test_an_exporter_that_is_not_here_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="OTEL_"), tracing(environ, str, content=False):
        pass
