"""Metrics: the numbers of a run come out, and labels stay few."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from orchestrator import events as ev
from orchestrator.errors import BudgetExceeded, ModelFailed, ModelFailure
from orchestrator.telemetry import failure_kinds, genai
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.model_labels import OTHER, ModelLabels
from orchestrator.telemetry.run_sink import RunSink
from tests.unit.sample_runs import Script, whole_run


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_a_run_comes_out_as_its_numbers(metrics: Metrics) -> None:
    whole_run(metrics.run())
    assert value(metrics, "rlm_runs_total", outcome="ok") == 1
    assert value(metrics, "rlm_runs_total", outcome="failed") == 0
    assert value(metrics, "rlm_run_answers_total", ending="final") == 1
    assert value(metrics, "rlm_runs_in_progress") == 0
    assert value(metrics, "rlm_run_duration_seconds_sum") == pytest.approx(4.2)
    assert value(metrics, "rlm_run_cost_usd_total") == pytest.approx(0.023)
    assert value(metrics, "rlm_model_calls_total", model="big", outcome="ok", cached="false") == 2
    assert value(metrics, "rlm_model_calls_total", model="small", outcome="ok", cached="false") == 3
    assert value(metrics, "rlm_model_tokens_total", model="small", direction="input") == 300
    assert value(metrics, "rlm_model_tokens_total", model="small", direction="output") == 60
    assert value(metrics, "rlm_model_cost_usd_total", model="big") == pytest.approx(0.02)
    assert value(metrics, "rlm_model_calls_in_progress") == 0
    assert value(metrics, "rlm_sandboxes_in_use") == 0
    assert value(metrics, "rlm_sandboxes_total", outcome="ok") == 2
    assert value(metrics, "rlm_sandbox_start_seconds_count", warm="true") == 2
    assert value(metrics, "rlm_cells_total", status="ok") == 1
    assert value(metrics, "rlm_cells_total", status="error") == 1
    assert value(metrics, "rlm_batch_size_sum") == 3
    assert value(metrics, "rlm_queries_total", outcome="ok", failure="none") == 2
    assert value(metrics, "rlm_queries_total", outcome="failed", failure="model") == 1
    assert value(metrics, "rlm_iterations_total", outcome="ok") == 3


def test_gauges_follow_a_run_while_it_goes_on(metrics: Metrics) -> None:
    script = Script((metrics.run(),))
    script.start()
    rlm = script.rlm(script.run)
    iteration = script.iteration(rlm)
    iteration.child(ev.SpanKind.MODEL).emit(ev.ModelCallStarted("big", ()))
    assert value(metrics, "rlm_runs_in_progress") == 1
    assert value(metrics, "rlm_sandboxes_in_use") == 1
    assert value(metrics, "rlm_model_calls_in_progress") == 1


def test_a_cached_answer_used_nothing(metrics: Metrics) -> None:
    script = Script((metrics.run(),))
    script.call(script.run, cached=True)
    assert value(metrics, "rlm_model_calls_total", model="big", outcome="ok", cached="true") == 1
    assert value(metrics, "rlm_model_tokens_total", model="big", direction="input") is None
    assert value(metrics, "rlm_model_cost_usd_total", model="big") is None
    assert value(metrics, "rlm_model_call_duration_seconds_count", model="big") is None


def test_an_unknown_price_is_told_apart_from_a_free_call(metrics: Metrics) -> None:
    script = Script((metrics.run(),))
    script.call(script.run, cost=None)
    assert value(metrics, "rlm_model_unpriced_calls_total", model="big") == 1
    assert value(metrics, "rlm_model_cost_usd_total", model="big") is None


def test_a_model_goes_by_the_name_it_was_asked_by(metrics: Metrics) -> None:
    script = Script((metrics.run(),))
    span = script.run.child(ev.SpanKind.MODEL)
    span.emit(ev.ModelCallStarted("gpt-5", ()))
    span.emit(ev.ModelCallEnded(ev.Outcome.OK, "", None, None, None, False, "gpt-5-2025-08-07", 1.0))
    assert value(metrics, "rlm_model_calls_total", model="gpt-5", outcome="ok", cached="false") == 1


@pytest.mark.parametrize("kind", ModelFailure)
def test_each_kind_of_failure_is_a_label(metrics: Metrics, kind: ModelFailure) -> None:
    script = Script((metrics.run(),))
    span = script.run.child(ev.SpanKind.MODEL)
    span.emit(ev.ModelRetried(1, 0.5, f"{kind.value}: try (later)"))
    failure = ModelFailed(kind, "a (strange) 'name'", "it said: failed (so there)", attempts=3)
    span.emit(ev.ModelCallEnded(ev.Outcome.FAILED, None, None, None, None, False, "m", 1.0, str(failure)))
    assert value(metrics, "rlm_model_retries_total", reason=kind.value) == 1
    assert value(metrics, "rlm_model_call_failures_total", model="m", kind=kind.value) == 1
    labels = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openai",
        "gen_ai_request_model": "m",
        "error_type": kind.value,
    }
    assert value(metrics, "gen_ai_client_operation_duration_seconds_count", **labels) == 1


def test_foreign_words_do_not_become_labels() -> None:
    assert failure_kinds.of_retry("user-chosen: 17") == failure_kinds.OTHER
    assert failure_kinds.of_model_call("model 'x' failed (user chosen): 17") == failure_kinds.OTHER
    assert failure_kinds.of_model_call("boom") == failure_kinds.OTHER
    assert failure_kinds.of_model_call(str(BudgetExceeded("max_calls", 5, 5, 1))) == "budget"


def test_ten_thousand_model_names_are_a_handful_of_series() -> None:
    metrics = Metrics(models=("big",), max_models=5)
    for number in range(10_000):
        script = Script((metrics.run(),))
        script.call(script.run, model=f"name-{number}")
    script = Script((metrics.run(),))
    script.call(script.run, model="big")
    models = {
        sample.labels["model"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "model" in sample.labels
    }
    assert models == {"big", OTHER, *(f"name-{number}" for number in range(5))}
    assert value(metrics, "rlm_model_calls_total", model=OTHER, outcome="ok", cached="false") == 9_995


def test_a_label_is_short_and_printable() -> None:
    labels = ModelLabels()
    assert labels("a\nb\x1b") == "a?b?"
    assert len(labels("x" * 10_000)) == 100
    assert labels("") == OTHER


def test_gauges_of_sandboxes_come_from_their_owner(metrics: Metrics) -> None:
    def broken() -> float:
        raise OSError

    metrics.watch_sandboxes(in_use=lambda: 3, idle=broken)
    assert value(metrics, "rlm_sandboxes_in_use") == 3
    assert b"rlm_sandboxes_idle NaN" in generate_latest(metrics.registry)


def test_a_lost_sandbox_and_its_cell_are_counted_apart_from_failing_code(metrics: Metrics) -> None:
    script = Script((metrics.run(),))
    cell = script.cell(script.run)
    cell.emit(ev.CellEnded(ev.Outcome.FAILED, None, "sandbox x was lost"))
    cell = script.cell(script.run)
    cell.emit(ev.CellEnded(ev.Outcome.CANCELLED, None))
    assert value(metrics, "rlm_cells_total", status="lost") == 1
    assert value(metrics, "rlm_cells_total", status="cancelled") == 1


def test_runs_at_the_same_time_do_not_mix(metrics: Metrics) -> None:
    first, second = Script((metrics.run(),)), Script((metrics.run(),))
    one, two = first.run.child(ev.SpanKind.MODEL), second.run.child(ev.SpanKind.MODEL)
    assert one.id == two.id
    one.emit(ev.ModelCallStarted("a", ()))
    two.emit(ev.ModelCallStarted("b", ()))
    one.emit(ev.ModelCallEnded(ev.Outcome.OK, "", None, None, None, False, "served", 1.0))
    two.emit(ev.ModelCallEnded(ev.Outcome.FAILED, None, None, None, None, False, "served", 1.0))
    assert value(metrics, "rlm_model_calls_total", model="a", outcome="ok", cached="false") == 1
    assert value(metrics, "rlm_model_calls_total", model="b", outcome="failed", cached="false") == 1


def test_a_consumer_that_fails_is_counted_and_harms_nobody(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[ev.Record] = []

    def broken(record: ev.Record) -> None:
        raise RuntimeError("sk-abcdefghijklmnop")

    def failed(consumer: str) -> None:
        metrics.telemetry_errors.labels(consumer).inc()

    redact = lambda text: text.replace("sk-abcdefghijklmnop", "***")  # noqa: E731
    whole_run(RunSink(metrics=metrics.run(), trace=broken, failed=failed, redact=redact), seen.append)
    assert value(metrics, "rlm_runs_total", outcome="ok") == 1
    assert value(metrics, "rlm_telemetry_errors_total", consumer="traces") == len(seen)
    assert [each.message for each in caplog.records] == ["traces failed on an event: RuntimeError('***')"]


def test_a_second_run_in_one_sink_is_not_told_of_and_goes_on(metrics: Metrics) -> None:
    sink = RunSink(metrics=metrics.run())
    first, second = Script((sink,)), Script((sink,))
    first.start()
    second.start()
    second.call(second.run)
    second.end()
    first.end()
    assert value(metrics, "rlm_runs_total", outcome="ok") == 1
    whole_run(sink)  # one after another is fine
    assert value(metrics, "rlm_runs_total", outcome="ok") == 2


def test_names_are_those_of_the_semantic_conventions() -> None:
    published = import_module("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    known = {each for name, each in vars(published).items() if name.startswith("GEN_AI_")}
    ours = {each for each in vars(genai).values() if isinstance(each, str) and each.startswith("gen_ai.")}
    assert ours
    assert ours <= known


def test_every_metric_is_in_the_operator_s_document(metrics: Metrics) -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"\b(?:rlm|gen_ai)_[a-z_]+", text))
    served = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith(("rlm_", "gen_ai_"))
    }
    assert served <= named
    assert {name.removesuffix("_bucket") for name in named} <= served
