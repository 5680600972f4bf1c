"""Telemetry as a service has it: scraped over HTTP, exported to a collector, from within a running loop."""

from __future__ import annotations

import asyncio
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

from orchestrator import telemetry
from orchestrator.errors import InvalidInput
from orchestrator.telemetry import Address, TelemetrySettings
from orchestrator.telemetry.loop_lag import watched_loop
from tests.unit.sample_runs import whole_run

ANY_PORT = TelemetrySettings(metrics=Address.parse("0"))


def get(address: Address, path: str = "/metrics", **headers: str) -> tuple[str, str]:
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers["Content-Type"], response.read().decode()


def test_metrics_are_scraped_over_loopback() -> None:
    with telemetry.open(ANY_PORT, environ={}) as told:
        assert told.metrics_at is not None
        assert told.metrics_at.host == "127.0.0.1"
        whole_run(*told.sinks())
        kind, body = get(told.metrics_at)
        assert kind.startswith("text/plain")
        assert 'rlm_runs_total{outcome="ok"} 1.0' in body
        assert "process_resident_memory_bytes" in body
        kind, body = get(told.metrics_at, Accept="application/openmetrics-text")
        assert kind.startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(told.metrics_at, "/")
        address = told.metrics_at
    with pytest.raises(urllib.error.URLError):
        get(address)


def test_a_port_that_is_taken_is_named() -> None:
    with telemetry.open(ANY_PORT, environ={}) as told:
        assert told.metrics_at is not None
        with (
            pytest.raises(InvalidInput, match="cannot be listened on"),
            telemetry.open(TelemetrySettings(metrics=told.metrics_at), environ={}),
        ):
            pass


def test_a_client_that_sends_nothing_keeps_nobody_else_out() -> None:
    with telemetry.open(ANY_PORT, environ={}) as told:
        assert told.metrics_at is not None
        idle = [http.client.HTTPConnection(told.metrics_at.host, told.metrics_at.port) for _ in range(20)]
        for connection in idle:
            connection.connect()
        assert "rlm_runs_total" in get(told.metrics_at)[1]
        for connection in idle:
            connection.close()


async def test_a_blocked_loop_shows_in_its_lag() -> None:
    seen: asyncio.Queue[float] = asyncio.Queue()
    with watched_loop(seen.put_nowait, 0.001):
        await seen.get()
        time.sleep(0.05)  # noqa: ASYNC251 - what is to be seen
        while await seen.get() < 0.04:
            pass


async def test_the_loop_that_it_is_opened_in_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[object] = []

    @contextmanager
    def recorded(observe: object, *, loop: object) -> Iterator[None]:
        watched.append(loop)
        yield

    monkeypatch.setattr("orchestrator.telemetry.opening.watched_loop", recorded)
    with telemetry.open(ANY_PORT, environ={}):
        assert watched == [asyncio.get_running_loop()]


class Collector(services.TraceServiceServicer):
    def __init__(self) -> None:
        self.names: list[str] = []
        self.services: set[str] = set()

    def Export(
        self, request: messages.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> messages.ExportTraceServiceResponse:
        for each in request.resource_spans:
            about = {pair.key: pair.value.string_value for pair in each.resource.attributes}
            self.services.add(about["service.name"])
            self.names += [span.name for scope in each.scope_spans for span in scope.spans]
        return messages.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[tuple[Collector, int]]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, port
    finally:
        server.stop(None).wait()


def test_spans_reach_a_collector_by_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (collector, port):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        with telemetry.open(TelemetrySettings()) as told:
            whole_run(*told.sinks())
        assert len(collector.names) == 19
        assert "invoke_workflow rlm" in collector.names
        assert collector.services == {"rlm-orchestrator"}


@pytest.mark.slow
def test_a_collector_that_is_away_costs_spans_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    seen: list[object] = []
    with telemetry.open(TelemetrySettings()) as told:
        whole_run(*told.sinks(), seen.append)
    assert seen
