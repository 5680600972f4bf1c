"""The faults of the scripted server as a real client meets them: the `openai` package over loopback."""

import asyncio
import email.utils
import json
import time

import openai
import pytest

from orchestrator.testing.scripted import RequestState, ScriptedServer, echo, rendezvous
from tests.contract.scripted_client import TEXT, ask_echo, client_of, served, streamed


async def test_a_429_carries_its_retry_headers() -> None:
    async with served() as (_, client):
        with pytest.raises(openai.RateLimitError) as caught:
            await ask_echo(client, "fail=429&retry_after=3&retry_after_ms=2500")
        with pytest.raises(openai.RateLimitError) as dated:
            await ask_echo(client, "fail=429&retry_after_date=60")

    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.response.headers["retry-after-ms"] == "2500"
    assert caught.value.code == "rate_limit_exceeded"
    assert email.utils.parsedate_to_datetime(dated.value.response.headers["retry-after"]).timestamp() > time.time()


@pytest.mark.parametrize(
    ("fail", "error", "code"),
    [
        ("400", openai.BadRequestError, None),
        ("401", openai.AuthenticationError, "invalid_api_key"),
        ("403", openai.PermissionDeniedError, None),
        ("404", openai.NotFoundError, "model_not_found"),
        ("500", openai.InternalServerError, None),
        ("502", openai.InternalServerError, None),
        ("503", openai.InternalServerError, None),
        ("context_length_exceeded", openai.BadRequestError, "context_length_exceeded"),
        ("insufficient_quota", openai.RateLimitError, "insufficient_quota"),
        ("html", openai.InternalServerError, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_error_status_is_the_error_of_the_client(
    fail: str, error: type[openai.APIStatusError], code: str | None, stream: bool
) -> None:
    async with served() as (_, client):
        with pytest.raises(error) as caught:
            await ask_echo(client, f"fail={fail}", stream=stream)

    assert caught.value.code == code


async def test_two_failures_and_then_success_is_what_a_retrying_client_sees() -> None:
    async with ScriptedServer({"echo": echo}) as server, client_of(server.base_url, max_retries=2) as client:
        completion = await ask_echo(client, "fail=503&times=2&retry_after_ms=1")

    assert completion.choices[0].message.content == TEXT
    assert [record.status for record in server.requests] == [503, 503, 200]


async def test_attempts_are_counted_for_each_prompt() -> None:
    async with served() as (server, client):
        for text in ("one", "two"):
            with pytest.raises(openai.InternalServerError):
                await ask_echo(client, "fail=500&times=1", text=text)
            await ask_echo(client, "fail=500&times=1", text=text)
        server.reset()
        with pytest.raises(openai.InternalServerError):
            await ask_echo(client, "fail=500&times=1", text="one")

    assert len(server.requests) == 1


async def test_faults_can_come_in_a_header_or_stand_for_all_requests() -> None:
    async with (
        ScriptedServer({"echo": echo}, faults="fail=503") as server,
        client_of(server.base_url) as client,
    ):
        with pytest.raises(openai.InternalServerError):
            await ask_echo(client)
        with pytest.raises(openai.AuthenticationError):
            await ask_echo(client, extra_headers={"X-Scripted-Faults": "fail=401"})
        assert (await ask_echo(client, "fail=empty_content")).choices[0].message.content == ""


async def test_a_malformed_body_is_not_json() -> None:
    async with served() as (server, client):
        with pytest.raises(json.JSONDecodeError):
            await ask_echo(client, "fail=malformed")

    assert server.requests[0].state is RequestState.ANSWERED


async def test_a_page_with_status_200_is_no_completion() -> None:
    async with served() as (_, client):
        answer = await client.chat.completions.with_raw_response.create(
            model="echo?fail=html_200", messages=[{"role": "user", "content": "q"}]
        )

    assert answer.headers["content-type"].startswith("text/html")
    assert answer.content.startswith(b"<html>")


async def test_a_wrong_content_type_hides_a_right_body() -> None:
    async with served() as (_, client):
        answer = await client.chat.completions.with_raw_response.create(
            model="echo?fail=wrong_content_type", messages=[{"role": "user", "content": "q"}]
        )

    assert answer.headers["content-type"].startswith("text/plain")
    assert json.loads(answer.content)["choices"][0]["message"]["content"] == "q"


async def test_replies_can_lack_what_a_client_counts_on() -> None:
    async with served() as (_, client):
        assert (await ask_echo(client, "fail=missing_usage")).usage is None
        assert (await ask_echo(client, "fail=no_choices")).choices == []
        assert (await ask_echo(client, "fail=null_content")).choices[0].message.content is None
        assert (await ask_echo(client, "fail=empty_content")).choices[0].message.content == ""
        refused = (await ask_echo(client, "fail=refusal")).choices[0].message
        assert (refused.content, bool(refused.refusal)) == (None, True)
        for reason in ("length", "content_filter"):
            choice = (await ask_echo(client, f"fail={reason}")).choices[0]
            assert (choice.finish_reason, choice.message.content) == (reason, TEXT[: len(TEXT) // 2])


async def test_an_error_can_hide_in_a_response_with_status_200() -> None:
    async with served() as (_, client):
        assert (await ask_echo(client, "fail=error_body")).error["type"] == "server_error"
        with pytest.raises(openai.APIError, match="had an error"):
            await streamed(client, "fail=error_body")


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_cut_stream_gives_its_first_chunks_and_then_an_error(after: int) -> None:
    received: list[str] = []
    async with served() as (server, client):
        whole = await streamed(client)
        with pytest.raises(openai.APIConnectionError):
            await streamed(client, f"fail=cut&after={after}", received)
        await server.wait_for(lambda log: log.in_flight == 0)

    assert received == whole[:after]
    assert server.requests[-1].state is RequestState.BROKEN


async def test_a_cut_does_not_lose_what_was_sent_before_it() -> None:
    received: list[str] = []
    text = "0123456789abcdef" * (1 << 16)
    async with served() as (_, client):
        with pytest.raises(openai.APIConnectionError):
            await streamed(client, "fail=cut&after=50", received, text=text)

    assert "".join(received) == text[: 50 * len(text) // 64]


async def test_a_malformed_event_comes_after_intact_ones() -> None:
    received: list[str] = []
    async with served() as (_, client):
        with pytest.raises(json.JSONDecodeError):
            await streamed(client, "fail=malformed&after=2", received)

    assert len(received) == 2


@pytest.mark.parametrize("fail", ["cut", "disconnect"])
async def test_a_broken_connection_is_a_connection_error(fail: str) -> None:
    async with served() as (server, client):
        with pytest.raises(openai.APIConnectionError):
            await ask_echo(client, f"fail={fail}")

    assert server.requests[0].state is RequestState.BROKEN


# Time, concurrency and clients that leave.


@pytest.mark.parametrize("faults", ["fail=hang", "latency=3600", "fail=stall"])
async def test_a_client_that_leaves_is_noticed(faults: str) -> None:
    async with served() as (server, client):
        call = asyncio.ensure_future(ask_echo(client, faults))
        await server.wait_for(lambda log: log.in_flight == 1)
        call.cancel()
        await server.wait_for(lambda log: log.count(RequestState.CANCELLED) == 1)
        assert (server.in_flight, server.max_in_flight) == (0, 1)
        await asyncio.wait([call])

    assert call.cancelled()


async def test_a_client_that_leaves_a_stream_is_noticed() -> None:
    async with served() as (server, client):
        stream = await ask_echo(client, "fail=stall&after=1", stream=True)
        await anext(stream)
        first = await anext(stream)
        assert first.choices[0].delta.content == TEXT[:4]
        assert server.in_flight == 1
        await stream.close()
        await server.wait_for(lambda log: log.count(RequestState.CANCELLED) == 1)


async def test_calls_made_together_are_in_flight_together() -> None:
    async with served(echo=rendezvous(20, echo)) as (server, client):
        completions = await asyncio.gather(*(ask_echo(client, text=str(number)) for number in range(20)))

    assert [completion.choices[0].message.content for completion in completions] == [str(n) for n in range(20)]
    assert (server.in_flight, server.max_in_flight) == (0, 20)
