"""Tokens and addresses: what a server is told of who may call, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InvalidInput
from orchestrator.hosting.principals import Principal, Quotas
from orchestrator.server.tokens import Entry, Tokens, as_toml, hash_of, new_token
from orchestrator.wire.addresses import TcpAddress, UnixAddress, parse_address
from tests.unit.cli_fakes import run_cli


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, token = tmp_path / "tokens.toml", new_token()
    entry = Entry("alice@example.org", hash_of(token), max_runs=4, max_cost_usd=0.5)
    path.write_text(as_toml(entry) + as_toml(Entry("root", hash_of("r"), admin=True)))
    tokens = Tokens.load(path)
    assert tokens.principal_of(token) == Principal("alice@example.org", Quotas(max_runs=4, max_cost_usd=0.5))
    assert tokens.principal_of("r") == Principal("root", admin=True)
    assert tokens.principal_of(token + "x") is None
    assert tokens.principal_of("") is None
    assert token not in path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        "[[token]]\nname = 'a'",
        "[[token]]\nname = 'a'\nsha256 = 'short'",
        f"[[token]]\nname = 'a b'\nsha256 = '{'0' * 64}'",
        f"[[token]]\nname = 'admin'\nsha256 = '{'0' * 64}'",  # whose runs are the socket's
        f"[[token]]\nname = 'a'\nsha256 = '{'0' * 64}'\nmax_cost_usd = inf",
        f"[[token]]\nname = 'a'\nsha256 = '{'0' * 64}'\nmax_rums = 1",
        f"[[token]]\nname = 'a'\nsha256 = '{'0' * 64}'\n" * 2,
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match="tokens"):
        Tokens.load(path)


def test_the_command_makes_a_token_that_the_server_takes(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    result = run_cli("token", "new", "alice", "--file", str(path), "--max-runs", "2")
    assert result.exit_code == 0, result.stderr
    principal = Tokens.load(path).principal_of(result.stdout.strip())
    assert principal is not None
    assert (principal.name, principal.quotas.max_runs) == ("alice", 2)
    assert path.stat().st_mode & 0o777 == 0o600
    assert run_cli("token", "new", "not a name").exit_code == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/a/b", UnixAddress(Path("/a/b"))),
        ("unix:///a/b", UnixAddress(Path("/a/b"))),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("[::1]:7443", TcpAddress("::1", 7443)),
        ("example.org:1", TcpAddress("example.org", 1)),
    ],
)
def test_addresses_are_read(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:70000", "::1:1", "unix:", "unix:/" + "x" * 107]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_loopback_is_told_from_elsewhere(host: str, loopback: bool) -> None:
    assert TcpAddress(host, 1).is_loopback is loopback
