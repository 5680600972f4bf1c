"""Counters, gauges and histograms of all runs of a process, for Prometheus.

Names follow Prometheus' own rules (base units, `_total` for counters). Labels have few values: see `model_labels`.
All are in a registry of their own, so that a program that uses the library keeps its own apart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.registry import Collector

from orchestrator import events as ev
from orchestrator.telemetry import failure_kinds, genai
from orchestrator.telemetry.model_labels import ModelLabels
from orchestrator.values import CellResult, Usage

logger = logging.getLogger(__name__)

_RUN_BUCKETS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
_CALL_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_START_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
_CELL_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """All metrics of a process. `models` always have a label of their own; of others, the first `max_models` do."""

    def __init__(self, models: Iterable[str] = (), max_models: int = 20) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self.label = ModelLabels(models, max_models)
        # process_*: memory, CPU, open files, start time. python_gc_*: the collector's pauses are a cause of lag.
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=tuple(buckets), registry=registry)

        self.runs = counter("rlm_runs", "Runs that ended.", "outcome")
        self.answers = counter("rlm_run_answers", "Answers, by how they came about.", "ending")
        self.runs_in_progress = gauge("rlm_runs_in_progress", "Runs that are going on.")
        self.run_duration = histogram("rlm_run_duration_seconds", "From a run's start to its end.", _RUN_BUCKETS)
        self.run_cost = counter("rlm_run_cost_usd", "Cost of ended runs, estimates of unanswered calls included.")
        self.iterations = counter("rlm_iterations", "Iterations of RLMs, at any depth.", "outcome")

        self.calls = counter("rlm_model_calls", "Calls of models.", "model", "outcome", "cached")
        self.call_failures = counter("rlm_model_call_failures", "Failed calls of models.", "model", "kind")
        self.tokens = counter("rlm_model_tokens", "Tokens of answered calls.", "model", "direction")
        self.cached_tokens = counter("rlm_model_cached_input_tokens", "Those read from a prompt cache.", "model")
        self.cost = counter("rlm_model_cost_usd", "Cost of answered calls with a known price.", "model")
        self.unpriced = counter("rlm_model_unpriced_calls", "Answered calls of unknown cost.", "model")
        self.call_duration = histogram(
            "rlm_model_call_duration_seconds", "Waiting for a slot and retries included.", _CALL_BUCKETS, "model"
        )
        self.retries = counter("rlm_model_retries", "Attempts that failed and were made again.", "reason")
        self.calls_in_progress = gauge("rlm_model_calls_in_progress", "Calls that wait or are in flight.")

        self.sandboxes_in_use = gauge("rlm_sandboxes_in_use", "Sandboxes that runs hold.")
        self.sandboxes_idle = gauge("rlm_sandboxes_idle", "Sandboxes made ahead that wait for a run.")
        self.sandbox_start = histogram(
            "rlm_sandbox_start_seconds", "From asking for a sandbox to having it.", _START_BUCKETS, "warm"
        )
        self.sandboxes = counter("rlm_sandboxes", "Sandboxes that ended; failed: lost.", "outcome")
        self.cells = counter("rlm_cells", "Cells that ended.", "status")
        self.cell_seconds = histogram("rlm_cell_seconds", "Running time, waiting for answers excluded.", _CELL_BUCKETS)
        self.batch_size = histogram("rlm_batch_size", "Questions of one llm_query or llm_batch.", _BATCH_BUCKETS)
        self.queries = counter("rlm_queries", "Sub-calls, after duplicates are folded.", "outcome", "failure")

        self.loop_lag = histogram("rlm_event_loop_lag_seconds", "How late the event loop is.", _LAG_BUCKETS)
        self.log_lines_dropped = counter("rlm_log_lines_dropped", "Log lines that could not be written in time.")
        self.telemetry_errors = counter("rlm_telemetry_errors", "Events that a consumer failed on.", "consumer")

        self.token_usage = histogram(
            genai.TOKEN_USAGE,
            "Tokens of one call (OpenTelemetry: gen_ai.client.token.usage).",
            genai.TOKEN_BUCKETS,
            *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_type"),
        )
        self.operation_duration = histogram(
            genai.OPERATION_DURATION,
            "Duration of one call (OpenTelemetry: gen_ai.client.operation.duration).",
            genai.DURATION_BUCKETS,
            *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type"),
        )
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """A series that begins with its first failure has no increase: alerts on it would miss that one."""
        for outcome in ev.Outcome:
            self.runs.labels(outcome.value)
            self.sandboxes.labels(outcome.value)

    def watch_sandboxes(self, *, in_use: Callable[[], float], idle: Callable[[], float]) -> None:
        """Takes both gauges from the sandboxes' owner, which also knows of those outside of runs.

        Both are called from another thread, with each scrape.
        """
        self.sandboxes_in_use.set_function(_guarded(in_use))
        self.sandboxes_idle.set_function(_guarded(idle))

    def run(self) -> RunMetrics:
        """A sink for one run at a time."""
        return RunMetrics(self)

    def log_line_dropped(self) -> None:
        self.log_lines_dropped.inc()

    def register(self, collector: Collector) -> None:
        """Adds someone else's metrics to what is served."""
        self.registry.register(collector)


def _guarded(read: Callable[[], float]) -> Callable[[], float]:
    def value() -> float:
        try:
            return float(read())
        except Exception:
            # One number that cannot be had must not take all others away.
            logger.exception("a gauge could not be read")
            return math.nan

    return value


class RunMetrics:
    """A sink for the records of one run at a time: models are known by the name that the run asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self._to = metrics
        self._asked: dict[int, str] = {}  # model by the span of its call
        self._sandboxes: set[int] = set()

    def __call__(self, record: ev.Record) -> None:
        to = self._to
        match record.event:
            # The most frequent first: a piece of text is nothing to count.
            case ev.ModelTextStreamed() | ev.CellPrinted():
                pass
            case ev.ModelCallStarted(model=model):
                self._asked[record.span_id] = model
                to.calls_in_progress.inc()
            case ev.ModelCallEnded() as call:
                if record.span_id in self._asked:
                    to.calls_in_progress.dec()
                self._call(call, self._asked.pop(record.span_id, call.model))
            case ev.ModelRetried(reason=reason):
                to.retries.labels(failure_kinds.of_retry(reason)).inc()
            case ev.QueryEnded(outcome=outcome, failure=failure):
                to.queries.labels(outcome.value, failure.value if failure else "none").inc()
            case ev.BatchStarted(size=size):
                to.batch_size.observe(size)
            case ev.CellEnded(result=CellResult() as result):
                to.cells.labels(result.status.value).inc()
                to.cell_seconds.observe(result.seconds)
            case ev.CellEnded(outcome=outcome):
                to.cells.labels("cancelled" if outcome is ev.Outcome.CANCELLED else "lost").inc()
            case ev.IterationEnded(outcome=outcome):
                to.iterations.labels(outcome.value).inc()
            case ev.SandboxStarted(seconds=seconds, warm=warm):
                self._sandboxes.add(record.span_id)
                to.sandboxes_in_use.inc()
                to.sandbox_start.labels(str(warm).lower()).observe(seconds)
            case ev.SandboxEnded(outcome=outcome):
                if record.span_id in self._sandboxes:
                    self._sandboxes.discard(record.span_id)
                    to.sandboxes_in_use.dec()
                to.sandboxes.labels(outcome.value).inc()
            case ev.RunStarted():
                to.runs_in_progress.inc()
            case ev.RunEnded() as run:
                to.runs_in_progress.dec()
                to.runs.labels(run.outcome.value).inc()
                to.run_duration.observe(run.seconds)
                to.run_cost.inc(run.spent.cost_usd)
                if run.outcome is ev.Outcome.OK and run.ending is not None:
                    to.answers.labels(run.ending.value).inc()
            case _:
                pass

    def _call(self, call: ev.ModelCallEnded, asked: str) -> None:
        to, model = self._to, self._to.label(asked)
        to.calls.labels(model, call.outcome.value, str(call.cached).lower()).inc()
        if call.cached:
            return  # no request of its own: nothing was used, and its time says nothing of the API
        error_type = ""
        match call.outcome:
            case ev.Outcome.FAILED:
                error_type = failure_kinds.of_model_call(call.error)
                to.call_failures.labels(model, error_type).inc()
            case ev.Outcome.CANCELLED:
                error_type = "cancelled"
            case ev.Outcome.OK:
                to.call_duration.labels(model).observe(call.seconds)
                if call.cost_usd is None:
                    to.unpriced.labels(model).inc()
        to.operation_duration.labels(genai.CHAT, genai.PROVIDER, model, error_type).observe(call.seconds)
        if call.cost_usd is not None:
            to.cost.labels(model).inc(max(0.0, call.cost_usd))
        if call.usage is not None:
            self._tokens(call.usage, model)

    def _tokens(self, usage: Usage, model: str) -> None:
        to = self._to
        for direction, count in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            # The numbers are the API's; a counter must not go back.
            to.tokens.labels(model, direction).inc(max(0, count))
            to.token_usage.labels(genai.CHAT, genai.PROVIDER, model, direction).observe(max(0, count))
        to.cached_tokens.labels(model).inc(max(0, usage.cached_input_tokens))
