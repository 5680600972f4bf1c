"""The client's side of a connection: what it takes for an address, and what it makes of gRPC's own errors."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from orchestrator.client.connection import Connection, Waits
from orchestrator.client.contexts import content_of
from orchestrator.client.remote import run_settings
from orchestrator.errors import InvalidInput, NotFound, ServiceFailed, ServiceFailure
from orchestrator.values import ContextKind
from orchestrator.wire.statuses import status_of


def _connection(server: str = "127.0.0.1:7443", **changes: object) -> Connection:
    return Connection(**{"server": server, "token": None, "ca": None, "retry_s": 0.0, **changes})  # type: ignore[arg-type]


def _error(code: grpc.StatusCode, details: str, status: bytes | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*((("grpc-status-details-bin", status),) if status is not None else ()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"server": "7443"}, "server"),
        ({"server": "https://unix:/s"}, "server"),
        ({"server": "unix:/s", "ca": Path("ca.pem")}, "server"),
        ({"token": "two\nlines"}, "token"),
        ({"token": "grün"}, "token"),
    ],
)
def test_what_cannot_be_an_address_or_a_token_is_named(changes: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _connection(**changes)  # type: ignore[arg-type]
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: Connection refused", "no server answers at"),
        ("failed to connect to all addresses; last error: connect failed: No such file or directory", "rlm serve"),
        ("errors resolving nosuch.invalid:1: Domain name not found", "no server answers at"),
        ("failed to connect to all addresses; last error: UNAVAILABLE: Socket closed", "https://"),
        ("failed to connect: Tls handshake failed (TSI_PROTOCOL_FAILURE)", "RLM_SERVER_CA"),
        ("failed to connect: Custom verification check failed", "no secure connection"),
        ("Socket closed", "was lost (Socket closed)"),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_with_a_remedy(details: str, said: str) -> None:
    error = _connection().renamed(_error(grpc.StatusCode.UNAVAILABLE, details))
    assert isinstance(error, ServiceFailed)
    assert error.kind is ServiceFailure.UNREACHABLE
    assert said in str(error)
    assert "127.0.0.1:7443" in str(error)


def test_what_a_server_itself_says_is_raised_as_the_library_raises_it() -> None:
    said = NotFound("run", "run_1")
    status = status_of(said).SerializeToString()
    error = _connection().renamed(_error(grpc.StatusCode.NOT_FOUND, str(said), status))
    assert isinstance(error, NotFound)
    assert str(error) == str(said)


async def test_only_what_may_pass_is_waited_for() -> None:
    assert not await Waits(60.0).wait(_error(grpc.StatusCode.NOT_FOUND, ""))
    assert not await Waits(0.0).wait(_error(grpc.StatusCode.UNAVAILABLE, ""))


@pytest.mark.parametrize(
    ("value", "kind", "data"),
    [
        ("häuser", ContextKind.TEXT, "häuser".encode()),
        ({"a": [1, None]}, ContextKind.JSON, b'{"a": [1, null]}'),
        (["a", "b"], ContextKind.JSON, b'["a", "b"]'),
        (b"\x00\xff", ContextKind.BYTES, b"\x00\xff"),
    ],
)
def test_a_context_is_sent_as_what_it_is(value: object, kind: ContextKind, data: bytes) -> None:
    content = content_of(value)
    assert (content.kind, content.size_bytes, b"".join(content.chunks())) == (kind, len(data), data)


def test_a_context_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidInput, match="context"):
        content_of({"a": object()})


@pytest.mark.parametrize(
    ("given", "name"),
    [({"memory_mib": 10}, "memory_mib"), ({"max_depth": 99}, "max_depth"), ({"nonsense": 1}, "nonsense")],
)
def test_settings_are_checked_before_a_server_is_asked(given: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        run_settings(given)
    assert caught.value.name == name


def test_settings_that_are_not_given_are_left_to_the_server() -> None:
    assert run_settings({"model": "big", "max_depth": None}) == {"model": "big"}
