"""What only the real client can get wrong: broken answers, other servers' dialects, its key, its event loop."""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from orchestrator.errors import InvalidInput, ModelFailed, ModelFailure
from orchestrator.events import EventLog, ModelRetried, Record
from orchestrator.llm.openai_chat import OpenAIChat
from orchestrator.llm.openai_client import open_client
from orchestrator.llm.retries import Retried
from orchestrator.seams import RequestTally
from orchestrator.testing.scripted import (
    ApiError,
    ChatRequest,
    Damage,
    Damaged,
    Disconnect,
    Hang,
    Outcome,
    RawBody,
    Reply,
    ScriptedServer,
    Usage,
    html_page,
    rate_limited,
)
from orchestrator.values import FinishReason, Message, Role

KEY = "sk-proj-4f9c0b7a2d6e8f13"
ASK = (Message(Role.USER, "hello"),)
FULL = Reply("a reply of several pieces")

streams = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
Script = Callable[[ChatRequest], Outcome | Awaitable[Outcome]]


@asynccontextmanager
async def served(
    script: Script | Outcome, *, timeout: float = 30.0, **settings: Any
) -> AsyncIterator[tuple[OpenAIChat, ScriptedServer]]:
    policy = script if callable(script) else lambda request: script
    async with (
        ScriptedServer({"model": policy}) as server,
        open_client(KEY, server.base_url, timeout, 8) as client,
    ):
        yield OpenAIChat(client, "model", **settings), server


async def failure_of(script: Script | Outcome, streamed: bool, tally: RequestTally, **settings: Any) -> ModelFailed:
    async with served(script, **settings) as (chat, _):
        with pytest.raises(ModelFailed) as caught:
            await chat.chat(ASK, EventLog().root(), (lambda text: None) if streamed else None, tally=tally)
    return caught.value


@streams
@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        pytest.param(html_page(200), ModelFailure.MALFORMED, id="html with status 200"),
        pytest.param(html_page(502), ModelFailure.SERVER, id="html with status 502"),
        pytest.param(Damaged(FULL, Damage.MALFORMED), ModelFailure.MALFORMED, id="malformed json"),
        pytest.param(Damaged(FULL, Damage.CUT), ModelFailure.CONNECTION, id="cut"),
        pytest.param(Damaged(FULL, Damage.ERROR_BODY), ModelFailure.SERVER, id="error with status 200"),
        pytest.param(Disconnect(), ModelFailure.CONNECTION, id="disconnect"),
        pytest.param(ApiError(500, "boom"), ModelFailure.SERVER, id="500"),
        pytest.param(ApiError(403, "no"), ModelFailure.AUTHENTICATION, id="403"),
        pytest.param(ApiError(408, "slow"), ModelFailure.TIMED_OUT, id="408"),
        pytest.param(ApiError(413, "big"), ModelFailure.TOO_LONG, id="413"),
        pytest.param(ApiError(400, "no", code="content_filter"), ModelFailure.REFUSED, id="prompt filtered"),
        pytest.param(
            ApiError(400, "the request exceeds the available context size"), ModelFailure.TOO_LONG, id="llama.cpp"
        ),
        pytest.param(
            ApiError(429, "Request too large for m on tokens per min", code="rate_limit_exceeded"),
            ModelFailure.TOO_LONG,
            id="larger than the rate limit",
        ),
    ],
)
async def test_a_broken_answer_has_its_kind(outcome: Outcome, kind: ModelFailure, streamed: bool) -> None:
    tally = RequestTally()
    failure = await failure_of(outcome, streamed, tally)
    assert failure.kind is kind
    turned_down = isinstance(outcome, ApiError) or (isinstance(outcome, RawBody) and outcome.status >= 400)
    assert tally.open == (0 if turned_down else 1), "what may have been billed stays open"


async def test_an_answer_without_choices_is_malformed() -> None:
    assert (await failure_of(Damaged(FULL, Damage.NO_CHOICES), False, RequestTally())).kind is ModelFailure.MALFORMED


@pytest.mark.parametrize(
    "body",
    ["[]", "null", "5", '{"choices":5}', '{"choices":[{"message":"hi"}]}', '{"choices":[null]}', "{", "\xff"],
)
async def test_json_of_another_shape_is_malformed(body: str) -> None:
    answer = RawBody(body.encode("latin-1"), "application/json")
    assert (await failure_of(answer, False, RequestTally())).kind is ModelFailure.MALFORMED


@pytest.mark.parametrize("chunk", ["null", "5", "[]", '{"choices":5}', '{"choices":[{"delta":"hi"}]}'])
async def test_a_chunk_of_another_shape_is_malformed(chunk: str) -> None:
    answer = RawBody(f"data: {chunk}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")
    assert (await failure_of(answer, True, RequestTally())).kind is ModelFailure.MALFORMED


async def test_a_finish_reason_of_another_type_is_tolerated() -> None:
    body = b'{"choices":[{"message":{"content":"yes"},"finish_reason":["stop"]}]}'
    async with served(RawBody(body, "application/json")) as (chat, _):
        assert (await chat.chat(ASK, EventLog().root())).text == "yes"


async def test_a_stream_of_a_chunk_without_choices_never_ended() -> None:
    assert (await failure_of(Damaged(FULL, Damage.NO_CHOICES), True, RequestTally())).kind is ModelFailure.CONNECTION


async def test_json_under_a_wrong_content_type_is_read_all_the_same() -> None:
    async with served(Damaged(FULL, Damage.WRONG_CONTENT_TYPE)) as (chat, _):
        assert (await chat.chat(ASK, EventLog().root())).text == FULL.text


@streams
@pytest.mark.parametrize("outcome", [Hang(), Damaged(FULL, Damage.STALL)], ids=["hang", "stall"])
async def test_silence_ends_at_the_requests_time_limit(outcome: Outcome, streamed: bool) -> None:
    failure = await failure_of(outcome, streamed, RequestTally(), timeout=0.2)
    assert failure.kind is ModelFailure.TIMED_OUT


async def test_no_server_is_a_connection_failure_that_cost_nothing() -> None:
    async with ScriptedServer({"model": lambda request: FULL}) as server:
        address = server.base_url
    tally = RequestTally()
    async with open_client(KEY, address, 30.0) as client:
        with pytest.raises(ModelFailed) as caught:
            await OpenAIChat(client, "model").chat(ASK, EventLog().root(), tally=tally)
    assert caught.value.kind is ModelFailure.CONNECTION
    assert (tally.sent, tally.open) == (1, 0)


@streams
async def test_a_stream_that_breaks_starts_over_on_a_retry(streamed: bool) -> None:
    async def no_nap(seconds: float) -> None:
        return

    def script(request: ChatRequest) -> Outcome:
        return Damaged(FULL, Damage.CUT, after=2) if request.attempt == 1 else FULL

    records: list[Record] = []
    tally = RequestTally()
    async with served(script) as (chat, _):
        reply = await Retried(chat, sleep=no_nap).chat(
            ASK, EventLog(records.append).root(), (lambda text: None) if streamed else None, tally=tally
        )
    assert reply.text == FULL.text
    assert [type(record.event) for record in records] == [ModelRetried]
    assert (tally.sent, tally.open) == (2, 1), "the first may have been billed"


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(rate_limited(retry_after="7"), 7.0), (rate_limited(retry_after_ms="250"), 0.25), (rate_limited(), None)],
)
async def test_what_the_api_asks_to_wait_is_told(error: ApiError, seconds: float | None) -> None:
    failure = await failure_of(error, False, RequestTally())
    assert failure.retry_after_s == seconds
    assert failure.status == 429


async def test_the_sdk_itself_retries_nothing() -> None:
    async with served(ApiError(500, "boom")) as (chat, server):
        with pytest.raises(ModelFailed):
            await chat.chat(ASK, EventLog().root())
        assert len(server.requests) == 1


# --- dialects ----------------------------------------------------------------------------------------------------


async def test_a_server_that_knows_no_stream_options_is_asked_without_them_from_then_on() -> None:
    def script(request: ChatRequest) -> Outcome:
        if "stream_options" in request.raw:
            return ApiError(400, "Unrecognized request argument supplied: stream_options")
        return FULL

    async with served(script) as (chat, server):
        tally = RequestTally()
        reply = await chat.chat(ASK, EventLog().root(), lambda text: None, tally=tally)
        assert reply.text == FULL.text
        assert reply.usage is None
        assert (tally.sent, tally.open) == (2, 0)
        await chat.chat(ASK, EventLog().root(), lambda text: None)
        assert len(server.requests) == 3


async def test_the_output_limits_field_follows_the_servers_complaint() -> None:
    def script(request: ChatRequest) -> Outcome:
        if "max_tokens" in request.raw:
            return ApiError(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
                param="max_tokens",
                code="unsupported_parameter",
            )
        return FULL

    async with served(script, max_output_tokens=100) as (chat, server):
        assert (await chat.chat(ASK, EventLog().root())).text == FULL.text
        await chat.chat(ASK, EventLog().root(), max_output_tokens=50)
        assert [request.body.get("max_completion_tokens") for request in server.requests] == [None, 100, 50]


@streams
@pytest.mark.parametrize(
    "complaint",
    [
        "max_tokens is too large: 16384. This model supports at most 4096 completion tokens, and you gave 16384.",
        "`max_tokens` must be less than or equal to `4096`, the maximum value for `max_tokens`",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 4096]",
        "max_tokens: 16384 > 4096, which is the maximum allowed number of output tokens",
        "a maxOutputTokens value of 16,384 but the supported range is from 1 (inclusive) to 4097 (exclusive)",
    ],
)
async def test_a_limit_that_is_more_than_the_model_can_give_is_left_out_from_then_on(
    complaint: str, streamed: bool
) -> None:
    sent: list[int | None] = []

    def script(request: ChatRequest) -> Outcome:
        sent.append(request.max_tokens)
        return ApiError(400, complaint) if (request.max_tokens or 0) > 4096 else FULL

    on_text = (lambda text: None) if streamed else None
    async with served(script) as (chat, _):
        tally = RequestTally()
        for limit in (16384, 16384, 20000, 4096):
            await chat.chat(ASK, EventLog().root(), on_text, max_output_tokens=limit, tally=tally)
    assert sent == [16384, None, None, None, 4096]
    assert (tally.sent, tally.open) == (5, 0)


@pytest.mark.parametrize(
    "complaint",
    [
        "This model's maximum context length is 4097 tokens. However, you requested 16500 tokens (116 in the messages, "
        "16384 in the completion). Please reduce the length of the messages or completion.",
        "'max_tokens' or 'max_completion_tokens' is too large: 16384. This model's maximum context length is 4096 "
        "tokens and your request has 116 input tokens (16384 > 4096 - 116).",
    ],
)
async def test_a_limit_that_this_prompt_leaves_no_room_for_is_left_out_this_time(complaint: str) -> None:
    sent: list[int | None] = []

    def script(request: ChatRequest) -> Outcome:
        sent.append(request.max_tokens)
        return ApiError(400, complaint) if len(sent) == 1 else FULL

    async with served(script) as (chat, _):
        for _ in range(2):
            await chat.chat(ASK, EventLog().root(), max_output_tokens=16384)
    assert sent == [16384, None, 16384]


async def test_a_prompt_that_does_not_fit_without_a_limit_either_is_too_long() -> None:
    complaint = "This model's maximum context length is 4097 tokens. However, you requested 21000 tokens, 16384 of it."
    async with served(ApiError(400, complaint, code="context_length_exceeded")) as (chat, server):
        with pytest.raises(ModelFailed) as caught:
            await chat.chat(ASK, EventLog().root(), max_output_tokens=16384)
        assert len(server.requests) == 2
    assert caught.value.kind is ModelFailure.TOO_LONG


async def test_a_limit_that_is_too_small_stays_since_a_budget_counts_on_it() -> None:
    complaint = "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 8 instead."
    async with served(ApiError(400, complaint)) as (chat, server):
        with pytest.raises(ModelFailed):
            await chat.chat(ASK, EventLog().root(), max_output_tokens=8)
        assert len(server.requests) == 1


async def test_a_server_that_names_both_limits_whatever_is_sent_is_not_asked_for_ever() -> None:
    words = "neither 'max_tokens' nor 'max_completion_tokens' is supported here"
    async with served(ApiError(400, words), max_output_tokens=9) as (chat, server):
        with pytest.raises(ModelFailed, match="rejected"):
            await chat.chat(ASK, EventLog().root())
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("address", "field"),
    [
        (None, "max_completion_tokens"),
        ("https://us.api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://api.openai.com.evil.test/v1", "max_tokens"),
        ("http://127.0.0.1:8000/v1", "max_tokens"),
    ],
)
async def test_the_output_limits_field_is_first_guessed_by_address(address: str | None, field: str) -> None:
    async with open_client(KEY, address) as client:
        assert client.dialect.output_limit_field == field


async def test_options_are_sent_as_they_are() -> None:
    options = {"temperature": 0.5, "reasoning_effort": "low", "top_k": 3}
    async with served(FULL, options=options) as (chat, server):
        await chat.chat(ASK, EventLog().root())
        body = server.requests[0].body
    assert {name: body[name] for name in options} == options
    assert "max_tokens" not in body
    assert "stream" not in body


async def test_two_models_with_other_options_are_not_the_same_request() -> None:
    async with open_client(KEY, "http://127.0.0.1:1/v1") as client:
        warm = OpenAIChat(client, "m", options={"temperature": 1.0, "top_p": 0.5})
        same = OpenAIChat(client, "m", options={"top_p": 0.5, "temperature": 1.0})
        cold = OpenAIChat(client, "m", options={"temperature": 0.0})
        assert warm.identity == same.identity
        assert len({warm.identity, cold.identity, OpenAIChat(client, "n").identity}) == 3


@pytest.mark.parametrize("option", ["model", "messages", "stream", "max_tokens", "max_completion_tokens"])
async def test_an_option_that_is_not_the_users_is_refused(option: str) -> None:
    async with open_client(KEY, "http://127.0.0.1:1/v1") as client:
        with pytest.raises(InvalidInput, match=option):
            OpenAIChat(client, "m", options={option: 1})


async def test_cached_input_tokens_are_read() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    body = json.dumps({"id": "x", "object": "chat.completion", "model": "dated", "choices": [choice], "usage": usage})
    async with served(RawBody(body.encode(), "application/json")) as (chat, _):
        reply = await chat.chat(ASK, EventLog().root())
    assert reply.usage is not None
    assert reply.usage.cached_input_tokens == 4
    assert reply.model == "dated"


async def test_usage_of_a_wrong_type_and_an_unknown_finish_reason_are_tolerated() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "eos"}
    body = json.dumps({"model": "m", "choices": [choice], "usage": {"prompt_tokens": None}})
    async with served(RawBody(body.encode(), "application/json")) as (chat, _):
        reply = await chat.chat(ASK, EventLog().root())
    assert (reply.text, reply.finish_reason, reply.usage) == ("ok", FinishReason.OTHER, None)


async def test_reported_usage_of_a_stream_is_the_apis() -> None:
    async with served(Reply("ok", usage=Usage(11, 22))) as (chat, _):
        reply = await chat.chat(ASK, EventLog().root(), lambda text: None)
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (11, 22)


# --- the key and the loop ----------------------------------------------------------------------------------------


@streams
async def test_the_key_is_in_no_message_and_no_traceback(streamed: bool) -> None:
    outcome = ApiError(401, f"Incorrect API key provided: {KEY}. Also Bearer {KEY} and sk-abcd****wxyz.")
    failure = await failure_of(outcome, streamed, RequestTally())
    printed = "".join(traceback.format_exception(failure)) + repr(failure) + repr(vars(failure))
    assert KEY not in printed
    assert "wxyz" not in printed
    assert "[key]" in failure.detail


async def test_the_key_is_not_in_the_clients_repr() -> None:
    async with open_client(KEY) as client:
        assert KEY not in repr(client)


async def test_use_from_a_second_event_loop_is_a_clear_error() -> None:
    caught: list[BaseException] = []
    async with served(FULL) as (chat, _):

        def elsewhere() -> None:
            try:
                asyncio.run(chat.chat(ASK, EventLog().root()))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert [type(error) for error in caught] == [InvalidInput]
    assert "event loop" in str(caught[0])


async def test_a_missing_key_is_named_unless_the_server_is_another() -> None:
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY"):
        async with open_client(None):
            pass
    async with ScriptedServer({"model": lambda request: FULL}) as server, open_client(None, server.base_url) as client:
        assert (await OpenAIChat(client, "model").chat(ASK, EventLog().root())).text == FULL.text


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x/v1", "http://", "http://[::1"])
async def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="base_url"):
        async with open_client(KEY, address):
            pass
