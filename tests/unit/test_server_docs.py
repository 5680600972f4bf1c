"""The reference of the gRPC services is what their protos say."""

from __future__ import annotations

from docs import generate_grpc
from orchestrator.protocol.rlm.v1 import run_pb2, sandbox_pb2, server_pb2


def test_the_reference_is_current() -> None:
    text = generate_grpc.PAGE.read_text()
    assert generate_grpc.regenerated(text) == text, "run: .venv/bin/python docs/generate_grpc.py"


def test_every_call_is_in_the_reference() -> None:
    reference = generate_grpc.reference()
    for module in (run_pb2, sandbox_pb2, server_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            assert f"## {service.name}\n" in reference
            assert not [each.name for each in service.methods if f"### {each.name}\n" not in reference]
