"""Plain requests are those that the SDK would send, by the same way, though it does not make them."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest
from aiohttp import web

from orchestrator.errors import InvalidInput, ModelFailed, ModelFailure
from orchestrator.events import EventLog
from orchestrator.llm.openai_chat import OpenAIChat
from orchestrator.llm.openai_client import OpenAIClient, open_client
from orchestrator.seams import RequestTally
from orchestrator.values import Message, Reply, Role

ANSWER = b'{"model": "m", "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
# What the SDK adds about its own retries and time-outs, and what a transport says of itself.
OF_THE_SDK_ALONE = {"x-stainless-retry-count", "x-stainless-read-timeout", "connection", "accept-encoding"}


@asynccontextmanager
async def served(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def asked(client: OpenAIClient) -> Reply:
    return await OpenAIChat(client, "m").chat((Message(Role.USER, "grüße"),), EventLog().root())


async def test_a_plain_request_is_what_the_sdk_would_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: red")
    seen = []

    async def note(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen.append((request.method, request.path_qs, headers, await request.read()))
        return web.Response(body=ANSWER)

    async with served(note) as url, open_client("sk-secret", url) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "grüße"}], "temperature": 0.5}
        await client.sdk.post("/chat/completions", body=body, cast_to=httpx2.Response)
        await client.plain.chat(body)
    [(*sdk, sdk_headers, sdk_body), (*plain, plain_headers, plain_body)] = seen
    assert plain == sdk
    assert plain_body == sdk_body
    assert plain_headers.items() - sdk_headers.items() <= {("accept-encoding", plain_headers["accept-encoding"])}
    assert sdk_headers.keys() - plain_headers.keys() <= OF_THE_SDK_ALONE
    assert plain_headers["authorization"] == "Bearer sk-secret"
    assert (plain_headers["openai-organization"], plain_headers["x-team"]) == ("org", "red")


@pytest.mark.parametrize(
    ("environment", "answered"),
    [
        ({"all_proxy": "PROXY"}, True),
        ({"http_proxy": "PROXY"}, True),
        ({"http_proxy": "PROXY", "no_proxy": "model.invalid"}, False),
        ({"http_proxy": "PROXY", "no_proxy": "*.invalid"}, False),
        ({"all_proxy": "SCHEMELESS"}, True),
        ({"https_proxy": "PROXY"}, False),
    ],
)
async def test_the_proxy_is_the_one_that_the_environment_has_for_the_address(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], answered: bool
) -> None:
    async def proxy(request: web.Request) -> web.Response:
        return web.Response(body=ANSWER)

    async with served(proxy) as url:
        for name, value in environment.items():
            proxy_url = url.removesuffix("/v1")
            monkeypatch.setenv(
                name, value.replace("PROXY", proxy_url).replace("SCHEMELESS", proxy_url.removeprefix("http://"))
            )
        # Nobody listens there: only a proxy can answer for it.
        async with open_client("sk-secret", "http://model.invalid/v1") as client:
            if answered:
                assert (await asked(client)).text == "yes"
            else:
                with pytest.raises(ModelFailed) as caught:
                    await asked(client)
                assert caught.value.kind is ModelFailure.CONNECTION


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDK's way to tell aiohttp of a proxy's password
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_is_not_given_the_key_for_itself(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """It sees what goes to an http address; of what goes to an https address it must see the name alone."""
    heads = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: red-team")
    async with await asyncio.start_server(note, "127.0.0.1", 0) as proxy:
        host, port = proxy.sockets[0].getsockname()
        monkeypatch.setenv(f"{scheme}_proxy", f"http://corporate:hunter2@{host}:{port}")
        async with open_client("sk-secret", f"{scheme}://model.invalid/v1") as client:
            with pytest.raises(ModelFailed) as caught:
                await asked(client)
    assert "hunter2" not in str(caught.value)
    [head] = heads
    assert b"proxy-authorization: basic" in head
    assert b"proxy-authorization: bearer" not in head
    if scheme == "https":
        assert head.startswith(b"connect model.invalid:443 ")
        assert b"sk-secret" not in head
        assert b"red-team" not in head


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
async def test_a_header_of_the_users_own_stands_for_the_keys(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"{name}: Bearer other")
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append(request.headers.getall("authorization"))
        return web.Response(body=ANSWER)

    async with served(note) as url, open_client("sk-secret", url) as client:
        await asked(client)
    assert seen == [["Bearer other"]]


async def test_a_redirect_is_followed_and_the_key_stays_at_home() -> None:
    keys = []

    async def elsewhere(request: web.Request) -> web.Response:
        keys.append(request.headers.get("authorization"))
        assert "grüße" in (await request.json())["messages"][0]["content"]
        return web.Response(body=ANSWER)

    async with served(elsewhere) as other_url:

        async def moved(request: web.Request) -> web.Response:
            keys.append(request.headers.get("authorization"))
            return web.Response(status=307, headers={"location": f"{other_url}/chat/completions"})

        async with served(moved) as url, open_client("sk-secret", url) as client:
            assert (await asked(client)).text == "yes"
            assert (await asked(client)).text == "yes"
    first, then = ["Bearer sk-secret", "Bearer sk-secret", None], ["Bearer sk-secret", None]
    assert keys == [*first, *then]  # the first is asked anew, by a client that follows


async def test_cookies_are_not_kept() -> None:
    cookies = []

    async def cookie(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("cookie"))
        return web.Response(body=ANSWER, headers={"set-cookie": "who=me"})

    # By name: aiohttp keeps none of an address that is a number.
    async with served(cookie) as url, open_client("sk-secret", url.replace("127.0.0.1", "localhost")) as client:
        await asked(client)
        await asked(client)
    assert cookies == [None, None]


@pytest.mark.parametrize("status", [200, 429])
async def test_what_comes_compressed_is_read(status: int) -> None:
    refusal = b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'

    async def compressed(request: web.Request) -> web.Response:
        body = gzip.compress(ANSWER if status == 200 else refusal)
        return web.Response(status=status, body=body, headers={"content-encoding": "gzip", "retry-after": "7"})

    async with served(compressed) as url, open_client("sk-secret", url) as client:
        if status == 200:
            assert (await asked(client)).text == "yes"
        else:
            with pytest.raises(ModelFailed, match="slow down") as caught:
                await asked(client)
            assert (caught.value.kind, caught.value.retry_after_s) == (ModelFailure.RATE_LIMITED, 7)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[]", b'"no"', b'{"error": "no"}', b'{"error": {"message": 3}}', b"[" * 200_000]
)
async def test_a_refusal_of_any_shape_has_its_status(body: bytes) -> None:
    async def refuse(request: web.Request) -> web.Response:
        headers = {"content-type": "application/json; charset=nonsense", "x-note": "grüße", "retry-after": "3"}
        return web.Response(status=503, body=body, headers=headers)

    async with served(refuse) as url, open_client("sk-secret", url) as client:
        with pytest.raises(ModelFailed) as caught:
            await asked(client)
    found = caught.value
    assert (found.kind, found.status, found.retry_after_s) == (ModelFailure.SERVER, 503, 3)


async def test_an_answer_that_breaks_off_is_a_lost_connection_and_may_be_billed() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    tally = RequestTally()
    async with served(broken) as url, open_client("sk-secret", url) as client:
        with pytest.raises(ModelFailed) as caught:
            await OpenAIChat(client, "m").chat((Message(Role.USER, "x"),), EventLog().root(), tally=tally)
    assert caught.value.kind is ModelFailure.CONNECTION
    assert tally.open == 1


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-sécret", "“sk-secret”"])
async def test_a_mutilated_key_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY") as caught:
        async with open_client(key, "http://model.invalid/v1"):
            pass
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"n2": float("nan")}, {"when": {1, 2}}])
async def test_options_that_no_json_can_hold_are_refused(options: dict[str, object]) -> None:
    async with open_client("sk-secret", "http://model.invalid/v1") as client:
        with pytest.raises(InvalidInput, match="model_options"):
            OpenAIChat(client, "m", options=options)
