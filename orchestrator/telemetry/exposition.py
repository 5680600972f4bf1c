"""The metrics over HTTP, for a Prometheus server to scrape: `GET /metrics`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from orchestrator.errors import InvalidInput
from orchestrator.telemetry.settings import Address

_REQUEST_S = 10.0  # a client that is slower holds a thread for nothing
_AT_A_TIME = 8


@contextmanager
def serve_metrics(registry: CollectorRegistry, address: Address) -> Iterator[Address]:
    """Serves for the block, from threads of its own; yields the address with the port that it came to.

    Raises `InvalidInput` when the address cannot be had.
    """
    room = threading.BoundedSemaphore(_AT_A_TIME)

    class Scrape(BaseHTTPRequestHandler):
        timeout = _REQUEST_S
        server_version = "rlm-orchestrator"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path != "/metrics":
                self._reply(404, "text/plain; charset=utf-8", b"The metrics are at /metrics.\n")
            elif not room.acquire(blocking=False):
                self._reply(503, "text/plain; charset=utf-8", b"Too many scrapes at a time.\n")
            else:
                try:
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    body = encode(registry)
                finally:
                    room.release()
                self._reply(200, content_type, body)

        def _reply(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes come every few seconds and say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET

        def handle_error(self, request: object, client_address: object) -> None:
            """A scraper that hangs up is no news."""

    try:
        server = Server((address.host, address.port), Scrape)
    except OSError as error:
        raise InvalidInput(
            "--metrics",
            f"{address} cannot be listened on ({error.strerror or error}).",
            "Choose another port, or an address of this host.",
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="rlm-metrics", daemon=True)
    thread.start()
    try:
        yield Address(address.host, int(server.server_address[1]))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
