"""The chat completion format, checked and written."""

import json
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.testing.scripted import ChatRequest, Reply, Usage, UsageReport, parse_request, wire

USER = {"role": "user", "content": "What is in the box?"}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [USER], **changes}


def events_of(reply: Reply, request: ChatRequest) -> list[dict[str, Any]]:
    events = wire.events(reply, request)
    assert events[-1] == b"data: [DONE]\n\n"
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
    return [json.loads(event[len(b"data: ") :]) for event in events[:-1]]


@pytest.mark.parametrize(
    ("broken", "param", "rule"),
    [
        (body(model=""), "model", "non-empty string"),
        (body(model=3), "model", "non-empty string"),
        (body(messages=[]), "messages", "non-empty array"),
        (body(messages="hi"), "messages", "non-empty array"),
        (body(messages=[USER, "hi"]), "messages.[1]", "expected an object"),
        (body(messages=[{"role": "boss", "content": "hi"}]), "messages.[0].role", "Supported values"),
        (body(messages=[{"role": "user", "content": None}]), "messages.[0].content", "null is for assistant"),
        (body(messages=[{"role": "user", "content": 5}]), "messages.[0].content", "expected a string"),
        (body(messages=[{"role": "user", "content": ["hi"]}]), "messages.[0].content", "with a 'type'"),
        (body(stream="yes"), "stream", "expected a boolean"),
        (body(stream_options={"include_usage": True}), "stream_options", "only allowed when 'stream'"),
        (body(stream=True, stream_options=[]), "stream_options", "expected an object"),
        (body(max_tokens=0), "max_tokens", "at least 1"),
        (body(max_completion_tokens=True), "max_completion_tokens", "at least 1"),
        (body(n=2), "n", "exactly 1 choice"),
        ([], None, "must be a JSON object"),
        ("{not json", None, "must be a JSON object"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field_and_the_rule(broken: Any, param: str | None, rule: str) -> None:
    with pytest.raises(wire.RequestRejected) as caught:
        parse_request(broken)

    assert caught.value.error.status == 400
    assert caught.value.error.param == param
    assert rule in caught.value.error.message


def test_a_request_is_seen_as_its_messages_say() -> None:
    request = parse_request(
        body(
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": None},
                {"role": "user", "content": [{"type": "text", "text": "se"}, {"type": "text", "text": "cond"}]},
            ],
            max_tokens=7,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    assert request.system == "Be brief.\nBe kind."
    assert (request.first_user, request.last_user, request.assistant_turns) == ("first", "second", 1)
    assert (request.max_tokens, request.stream, request.include_usage) == (7, True, True)


def test_a_prompt_keeps_its_digest_and_another_prompt_has_another() -> None:
    first = parse_request(body())
    joined = {"role": "user", "content": "a" + "b"}
    split = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]

    assert parse_request(body(stream=True)).digest == first.digest
    assert parse_request(body(model="read")).digest != first.digest
    assert parse_request(body(messages=[joined])).digest != parse_request(body(messages=split)).digest


def test_a_prompt_with_a_lone_surrogate_is_accepted() -> None:
    request = parse_request(json.loads('{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}'))

    assert json.loads(wire.completion_body(Reply(request.last_user), request))["choices"][0]["message"]["content"] == (
        "\ud800"
    )


def test_usage_counts_a_token_for_every_four_characters_begun() -> None:
    completion = wire.completion(Reply("12345"), parse_request(body()))

    assert completion["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert completion["system_fingerprint"] == "scripted"


def test_usage_is_as_given_or_left_out() -> None:
    request = parse_request(body())

    assert wire.completion(Reply("x", usage=Usage(100, 20)), request)["usage"]["total_tokens"] == 120
    assert "usage" not in wire.completion(Reply("x", usage=UsageReport.OMITTED), request)


def test_a_reply_over_the_token_limit_is_cut_and_says_so() -> None:
    request = parse_request(body(max_completion_tokens=2))

    cut = wire.completion(Reply("123456789"), request)
    whole = wire.completion(Reply("12345678"), request)

    assert cut["choices"][0]["message"]["content"] == "12345678"
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 2
    assert whole["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("text", ["", "x", "four", "a longer text, " * 7, "ünïcödé 🎈" * 500])
def test_a_stream_holds_the_whole_text_in_a_bounded_number_of_chunks(text: str) -> None:
    chunks = events_of(Reply(text), parse_request(body(stream=True)))

    contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(contents) == text
    assert len(chunks) <= 66
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stream_reports_usage_last_and_only_if_asked() -> None:
    request = parse_request(body(stream=True, stream_options={"include_usage": True}))

    chunks = events_of(Reply("12345"), request)

    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert all("usage" not in chunk for chunk in events_of(Reply("12345"), replace(request, include_usage=False)))


def test_a_refusal_is_streamed_as_a_refusal() -> None:
    chunks = events_of(Reply(None, refusal="I would rather not."), parse_request(body(stream=True)))

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("refusal", "") for delta in deltas) == "I would rather not."
    assert all(not delta.get("content") for delta in deltas)
