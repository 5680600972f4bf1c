"""What an operator sees of `rlm serve`, a process with real containers: its metrics, its traces, its end, its port."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

from orchestrator.client.calls import Client
from orchestrator.events import BatchStarted
from orchestrator.protocol.rlm.v1 import run_pb2, run_pb2_grpc
from orchestrator.testing.scripted import ChatRequest, Hang, Outcome, Reply, ScriptedServerThread, sequence
from orchestrator.views import RunState
from tests.integration.e2e_command import environment, its_end, reaper_of, started
from tests.integration.e2e_world import reply

pytestmark = pytest.mark.docker

_ROOT = [reply("answers = llm_batch(['a', 'b'])"), reply("FINAL('+'.join(answers))")]


def _shout(request: ChatRequest) -> Outcome:
    return Reply(request.last_user.upper())


def _hang(request: ChatRequest) -> Outcome:
    return Hang()


@dataclass(frozen=True, slots=True)
class Served:
    process: subprocess.Popen[bytes]
    address: str
    metrics: str
    stderr: IO[bytes]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate()
        assert self.process.returncode == 0, rest.decode()

    def says(self, text: bytes) -> None:
        """Waits for a line with it."""
        for line in self.stderr:
            if text in line:
                return
        raise AssertionError(f"the server ended and did not say {text!r}")


@contextmanager
def _served(environ: dict[str, str], *options: str) -> Iterator[Served]:
    """`rlm serve` that answers, on a port of this machine, with metrics on another; killed at the end."""
    command = ("serve", "--address", "127.0.0.1:0", "--metrics", "0", *options)
    with started(*command, environ=environ, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said: dict[bytes, str] = {}
        for line in process.stderr:
            for start in (b"Serving on ", b"Metrics at "):
                if line.startswith(start):
                    said[start] = line.removeprefix(start).decode().strip()
            if len(said) == 2:
                break
        else:
            raise AssertionError("the server ended before it served")
        yield Served(process, said[b"Serving on "], said[b"Metrics at "], process.stderr)


def _scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_metrics_tell_of_the_runs(state_dir: Path) -> None:
    with (
        ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _shout}) as models,
        _served(environment(models.base_url, 1)) as served,
    ):
        async with Client(served.address) as client:
            view = await client.start("Which?", "x" * 100)
            async for _ in client.watch(view.run_id):
                pass
        found = _scraped(served.metrics)
        served.stop()
    assert found['rlm_runs_total{outcome="ok"}'] == 1
    assert (found["rlm_runs_in_progress"], found["rlm_sandboxes_in_use"]) == (0, 0)
    assert sum(value for name, value in found.items() if name.startswith("rlm_model_calls_total")) == 4


class _Collector(services.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(
        self, request: messages.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> messages.ExportTraceServiceResponse:
        self.spans += [span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
        return messages.ExportTraceServiceResponse()


@contextmanager
def _collecting() -> Iterator[tuple[_Collector, str]]:
    collector = _Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def test_a_run_is_part_of_its_caller_s_trace(state_dir: Path) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with (
        ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _shout}) as models,
        _collecting() as (seen, endpoint),
    ):
        environ = {**environment(models.base_url, 1), "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        with _served(environ) as served:
            async with Client(served.address) as client:
                stub: Any = run_pb2_grpc.RunServiceStub(client.connection.channel)
                begun = await stub.StartRun(
                    run_pb2.StartRunRequest(query="Which?"), metadata=(("traceparent", f"00-{trace}-{parent}-01"),)
                )
                async for _ in client.watch(begun.run.run_id):
                    pass
            served.stop()  # what it still holds is exported at its end
        assert {span.trace_id.hex() for span in seen.spans} == {trace}
        known = {span.span_id for span in seen.spans}
        (top,) = [span for span in seen.spans if span.parent_span_id not in known]
        assert top.parent_span_id.hex() == parent


async def test_a_second_signal_ends_it_at_once_and_the_next_one_says_what_became_of_its_runs(state_dir: Path) -> None:
    with ScriptedServerThread({"depth-0": sequence(_ROOT), "leaf": _hang}) as models:
        environ = environment(models.base_url, 1)
        with _served(environ, "--drain-grace", "3600") as served:
            async with Client(served.address) as client:
                view = await client.start("Which?")
                async for record in client.watch(view.run_id):
                    if isinstance(record.event, BatchStarted):
                        break
            with its_end(reaper_of(served.process.pid)) as reaper:
                served.process.send_signal(signal.SIGTERM)
                served.says(b"Stopping")
                served.process.send_signal(signal.SIGTERM)
                served.says(b"Stopped at once")
                assert served.process.wait() == 143
                assert reaper.poll(60_000), "its containers are still there"
        with _served(environ) as served:
            async with Client(served.address) as client:
                assert (await client.get(view.run_id)).state is RunState.INTERRUPTED
            served.stop()


def test_a_server_whose_words_nobody_reads_ends_as_it_is_told(state_dir: Path) -> None:
    with ScriptedServerThread({"depth-0": _hang}) as models, _served(environment(models.base_url, 1)) as served:
        served.stderr.close()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait() == 0


def test_a_run_by_the_command_over_tls_with_a_token(state_dir: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    state_dir.mkdir(mode=0o700)
    ca, certificate, key, tokens = (state_dir / name for name in ("ca.pem", "server.pem", "key.pem", "tokens.toml"))
    authority.cert_pem.write_to_path(ca)
    for each in issued.cert_chain_pems:
        each.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    with ScriptedServerThread({"depth-0": sequence(_ROOT * 2), "leaf": _shout}) as models:
        environ = environment(models.base_url, 1)
        made = ("token", "new", "alice", "--file", str(tokens), "--max-runs", "1")
        with started(*made, environ=environ, stdout=subprocess.PIPE) as process:
            token = process.communicate()[0].decode().strip()
        options = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tokens", str(tokens))
        with _served(environ, *options) as served:
            caller = {**environ, "RLM_SERVER": served.address, "RLM_TOKEN": token, "RLM_SERVER_CA": str(ca)}
            with started("ask", "Which?", environ=caller, stdout=subprocess.PIPE) as process:
                assert process.communicate()[0] == b"A+B\n"
            with started("runs", "--json", environ=caller, stdout=subprocess.PIPE) as process:
                (run,) = json.loads(process.communicate()[0])["runs"]
            assert (run["principal"], run["answer"]) == ("alice", "A+B")
            stranger = {**caller, "RLM_TOKEN": token[:-1]}
            with started("ask", "Which?", environ=stranger, stderr=subprocess.PIPE) as process:
                assert b"not one of this server's" in process.communicate()[1]
                assert process.returncode == 18
            served.stop()
