"""The scripted server as a real client meets it: the `openai` package over loopback."""

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from orchestrator.testing.scripted import (
    ANY_MODEL,
    ChatRequest,
    Outcome,
    Policy,
    Reply,
    RequestState,
    ScriptedServer,
    ScriptedServerThread,
    constant,
    echo,
    sequence,
)
from orchestrator.testing.scripted.__main__ import main
from tests.contract.scripted_client import TEXT, ask_echo, client_of, served

# Ordinary answers.


async def test_a_plain_completion_is_complete() -> None:
    async with served() as (server, client):
        completion = await ask_echo(client)

    choice = completion.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert (completion.model, completion.system_fingerprint) == ("echo", "scripted")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (7, 7)
    assert completion._request_id == "req_scripted_0"
    (record,) = server.requests
    assert (record.state, record.status, record.model) == (RequestState.ANSWERED, 200, "echo")
    assert record.body["messages"] == [{"role": "user", "content": TEXT}]
    assert record.headers["authorization"] == "Bearer scripted"


async def test_a_stream_gives_the_text_in_chunks_and_the_usage_last() -> None:
    async with served() as (_, client):
        stream = await ask_echo(client, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]

    contents = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(contents) == TEXT
    assert len([content for content in contents if content]) > 2
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 14
    assert {chunk.system_fingerprint for chunk in chunks} == {"scripted"}


async def test_models_are_listed_as_scripted() -> None:
    async with served(**{"echo": echo, "yes": constant("yes"), ANY_MODEL: echo}) as (_, client):
        models = (await client.models.list()).data
        one = await client.models.retrieve("yes")

    assert [(model.id, model.owned_by) for model in models] == [
        ("echo", "scripted-policy"),
        ("yes", "scripted-policy"),
    ]
    assert one.id == "yes"


async def test_a_conversation_walks_through_its_script() -> None:
    async with served(planner=sequence(["```repl\nx = 6 * 7\n```", "FINAL(x)"])) as (_, client):
        messages: list[Any] = [{"role": "user", "content": "What is 6 * 7?"}]
        replies = []
        for _ in range(2):
            completion = await client.chat.completions.create(model="planner", messages=messages)
            replies.append(completion.choices[0].message.content)
            messages += [{"role": "assistant", "content": replies[-1]}, {"role": "user", "content": "output"}]
        with pytest.raises(openai.BadRequestError, match="script has 2 steps"):
            await client.chat.completions.create(model="planner", messages=messages)

    assert replies == ["```repl\nx = 6 * 7\n```", "FINAL(x)"]


async def test_a_large_prompt_comes_back_whole() -> None:
    text = "0123456789abcdef" * (1 << 18)
    async with served() as (_, client):
        completion = await ask_echo(client, text=text)

    assert completion.choices[0].message.content == text


async def test_any_model_is_answered_where_a_policy_stands_for_all() -> None:
    async with served(**{ANY_MODEL: constant("x")}) as (_, client):
        completion = await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "q"}])

    assert completion.model == "gpt-9"


async def test_replies_given_by_coroutines_are_awaited() -> None:
    async def policy(request: ChatRequest) -> Outcome:
        await asyncio.sleep(0)
        return Reply("later", model="another-name")

    async with served(slow=policy) as (_, client):
        completion = await client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "q"}])

    assert (completion.choices[0].message.content, completion.model) == ("later", "another-name")


# Errors.


async def test_an_unknown_model_is_a_404_in_the_words_of_the_api() -> None:
    async with served() as (server, client):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "q"}])

    assert caught.value.body == {
        "message": "The model `gpt-9` does not exist or you do not have access to it.",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }
    assert server.requests[0].status == 404


async def test_a_bad_body_is_a_400_that_names_the_field() -> None:
    async with served() as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask_echo(client, max_tokens=-1)

    assert (caught.value.param, caught.value.type) == ("max_tokens", "invalid_request_error")


async def test_a_bad_fault_is_a_400_that_names_where_it_stood() -> None:
    async with served() as (_, client):
        with pytest.raises(openai.BadRequestError, match="'fial' is unknown") as by_model:
            await ask_echo(client, "fial=429")
        with pytest.raises(openai.BadRequestError, match="fail='x' is unknown") as by_header:
            await ask_echo(client, extra_headers={"X-Scripted-Faults": "fail=x"})

    assert (by_model.value.param, by_header.value.param) == ("model", "x-scripted-faults")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/v1/models/nothing", 404)],
)
async def test_a_wrong_address_gets_an_error_body_too(method: str, path: str, status: int) -> None:
    async with (
        ScriptedServer({"echo": echo}) as server,
        aiohttp.ClientSession() as http,
        http.request(method, server.url + path) as response,
    ):
        body = await response.json()

    assert response.status == status
    assert body["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_a_400(body: bytes) -> None:
    async with (
        ScriptedServer({"echo": echo}) as server,
        aiohttp.ClientSession() as http,
        http.post(f"{server.base_url}/chat/completions", data=body) as response,
    ):
        error = (await response.json())["error"]

    assert response.status == 400
    assert "must be a JSON object" in error["message"]


async def test_a_body_over_the_limit_is_a_413() -> None:
    async with ScriptedServer({"echo": echo}, max_body_bytes=1000) as server, client_of(server.base_url) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await ask_echo(client, text="x" * 2000)

    assert caught.value.status_code == 413
    assert server.in_flight == 0


async def test_a_policy_that_raises_is_a_500_that_says_what_it_raised() -> None:
    def policy(request: ChatRequest) -> Outcome:
        raise LookupError("no such page")

    async with served(broken=policy) as (_, client):
        with pytest.raises(openai.InternalServerError, match="LookupError: no such page") as caught:
            await client.chat.completions.create(model="broken", messages=[{"role": "user", "content": "q"}])

    assert caught.value.code == "policy_failed"


# Opening and closing.


async def test_closing_ends_what_hangs() -> None:
    async with client_of("http://127.0.0.1") as client:
        async with ScriptedServer({"echo": echo}) as server:
            client.base_url = server.base_url
            calls = [asyncio.ensure_future(ask_echo(client, "fail=hang")) for _ in range(3)]
            await server.wait_for(lambda log: log.in_flight == 3)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [openai.APIConnectionError] * 3
    assert server.count(RequestState.CANCELLED) == 3


async def test_a_port_in_use_is_an_error_and_leaves_nothing_open() -> None:
    async with ScriptedServer({"echo": echo}) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with ScriptedServer({"echo": echo}, port=port):
                pytest.fail("two servers took one port")


@pytest.mark.parametrize("policies", [{}, {"": echo}, {"a?b": echo}])
def test_models_need_names_that_requests_can_give(policies: dict[str, Policy]) -> None:
    with pytest.raises(ValueError, match="model"):
        ScriptedServer(policies)


# In a thread, and as a program.


def test_the_server_runs_in_a_thread_for_code_that_is_not_async() -> None:
    with (
        ScriptedServerThread({"echo": echo}) as server,
        openai.OpenAI(base_url=server.base_url, api_key="scripted", max_retries=0) as client,
    ):
        completion = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
        server.wait_for(lambda log: log.count(RequestState.ANSWERED) == 1)
        assert server.max_in_flight == 1
        with pytest.raises(TimeoutError):
            server.wait_for(lambda log: log.started == 2, timeout_s=0)

    assert completion.choices[0].message.content == "hi"
    assert [record.state for record in server.requests] == [RequestState.ANSWERED]
    server.reset()
    assert not server.requests


def test_an_error_at_the_start_of_the_thread_reaches_the_caller() -> None:
    with ScriptedServerThread({"echo": echo}) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), ScriptedServerThread({"echo": echo}, port=port):
            pytest.fail("two servers took one port")


def test_the_program_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"models": {"planner": {"replies": ["FINAL(1)"]}}}))
    command = [sys.executable, "-m", "orchestrator.testing.scripted", "--script", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/healthz") as response:
            health = json.load(response)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="scripted", max_retries=0) as client:
            completion = client.chat.completions.create(model="planner", messages=[{"role": "user", "content": "q"}])
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        errors = process.stderr.read()

    assert health == {"status": "ok"}
    assert completion.choices[0].message.content == "FINAL(1)"
    assert (status, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faults", "fial=1"], "fault key 'fial' is unknown"),
        (["--script", "/no/such/file"], "cannot be read"),
        (["--port", "70000"], "must be a port from 0 to 65535"),
    ],
)
def test_the_program_refuses_wrong_arguments_with_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as stopped:
        status = stopped.code

    assert status == 2
    assert message in capsys.readouterr().err
