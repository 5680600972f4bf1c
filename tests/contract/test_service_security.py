"""What is said between a client and a server over TCP: secret by TLS, answered for a token only."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from orchestrator.client.calls import Client
from orchestrator.client.remote import Remote
from orchestrator.errors import InvalidInput, RLMError, ServiceFailed, ServiceFailure
from orchestrator.server.listening import Tls
from orchestrator.server.tokens import Entry, Tokens, hash_of
from orchestrator.wire.addresses import TcpAddress
from tests.unit.fake_desks import fake_server

TOKENS = Tokens([Entry("alice", hash_of("a"))])
LOOPBACK = (TcpAddress("127.0.0.1", 0),)


class Authority:
    """A certificate for localhost, and the file of the authority that signed it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.tls = Tls(folder / "server.pem", folder / "key.pem")
        for each in issued.cert_chain_pems:
            each.write_to_path(self.tls.certificate, append=True)
        issued.private_key_pem.write_to_path(self.tls.key)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "strangers")


async def _refused(client: Client) -> RLMError:
    async with client:
        with pytest.raises(ServiceFailed) as caught:
            await client.info()
    return caught.value


async def test_a_run_over_tls_with_a_token(tmp_path: Path, authority: Authority) -> None:
    async with fake_server(tmp_path, addresses=LOOPBACK, tls=authority.tls, tokens=TOKENS) as server:
        (address,) = server.addresses
        async with Client(str(address), "a", ca=authority.ca) as client:
            assert (await Remote(client, {}).ask("Who?", "x" * 6_000_000)).answer == "The gardener."
            assert [view.principal for view in (await client.list()).items] == ["alice"]
        wrong = await _refused(Client(str(address), "b", ca=authority.ca))
        assert isinstance(wrong, ServiceFailed)
        assert wrong.kind is ServiceFailure.UNAUTHENTICATED


async def test_a_server_that_cannot_prove_who_it_is_gets_no_token(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async with fake_server(tmp_path, addresses=LOOPBACK, tls=stranger.tls, tokens=TOKENS) as server:
        (address,) = server.addresses
        for client in (
            Client(str(address), "a", ca=authority.ca, retry_s=0.0),
            Client(f"https://{address}", "a", retry_s=0.0),  # the machine's own authorities do not know it either
        ):
            error = await _refused(client)
            assert "no secure connection" in str(error)
            assert "RLM_SERVER_CA" in str(error)


async def test_a_name_that_is_not_the_certificate_s_is_refused(tmp_path: Path, authority: Authority) -> None:
    async with fake_server(tmp_path, addresses=(TcpAddress("127.0.0.2", 0),), tls=authority.tls) as server:
        (address,) = server.addresses
        assert "no secure connection" in str(await _refused(Client(str(address), ca=authority.ca, retry_s=0.0)))


async def test_neither_end_falls_back_to_the_clear(tmp_path: Path, authority: Authority) -> None:
    async with fake_server(tmp_path, addresses=LOOPBACK, tls=authority.tls) as server:
        assert "Does it want TLS?" in str(await _refused(Client(str(server.addresses[0]), "a", retry_s=0.0)))
    async with fake_server(tmp_path, addresses=LOOPBACK) as server:
        error = await _refused(Client(str(server.addresses[0]), "a", ca=authority.ca, retry_s=0.0))
        assert "no secure connection" in str(error)


@pytest.mark.parametrize(("option", "missing"), [("--tls-key", "key"), ("--tls-cert", "certificate")])
async def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, authority: Authority, option: str, missing: str
) -> None:
    parts = {"certificate": authority.tls.certificate, "key": authority.tls.key, missing: tmp_path / "none.pem"}
    with pytest.raises(InvalidInput, match=r"none\.pem cannot be read") as caught:
        async with fake_server(tmp_path, addresses=LOOPBACK, tls=Tls(parts["certificate"], parts["key"])):
            pass
    assert caught.value.name == option


async def test_a_key_of_another_certificate_is_refused(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    tls = Tls(authority.tls.certificate, stranger.tls.key)
    with pytest.raises(InvalidInput, match="not a certificate and its key"):
        async with fake_server(tmp_path, addresses=LOOPBACK, tls=tls):
            pass
