"""`python -m orchestrator.server.health`: whether a server serves, for a container's health check or a supervisor.

Exits with 0 when it does (`grpc.health.v1`), with 1 and a reason when it does not, with 2 for wrong arguments. It asks
on the server's own socket, where neither TLS nor a token is needed; so a server with other addresses has that one too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.config import Config
from orchestrator.errors import InvalidInput
from orchestrator.wire.addresses import UnixAddress, parse_address

_SOCKET = "rlm.sock"


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks once; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.server.health", description="Exits with 0 if the server serves."
    )
    parser.add_argument(
        "address", nargs="?", help="unix:/path or loopback:port (default: rlm.sock in the state directory)"
    )
    parser.add_argument("--timeout", type=float, default=3.0, metavar="S", help="default: %(default)g")
    options = parser.parse_args(arguments)
    try:
        address = parse_address(options.address or _default_address(), "ADDRESS")
        if not (isinstance(address, UnixAddress) or address.is_loopback):
            raise InvalidInput("ADDRESS", f"{address} is not on this machine.", "Ask it on its Unix socket.")
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    problem = _problem(str(address), options.timeout)
    if problem:
        print(f"{address}: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _default_address() -> str:
    # Not all of the configuration: a health check must not fail over a setting that it does not need.
    state_dir = os.environ.get("RLM_STATE_DIR") or Config().state_dir
    return f"unix:{state_dir}/{_SOCKET}"


def _problem(address: str, timeout_s: float) -> str:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


if __name__ == "__main__":
    sys.exit(main())
