"""One model of an OpenAI-compatible chat completions API. One request a call: retries are another wrapper's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from orchestrator.errors import InvalidInput, ModelFailed, ModelFailure
from orchestrator.events import Span
from orchestrator.llm.openai_answers import Collected, answer_of, text_of, usage_of
from orchestrator.llm.openai_client import OpenAIClient
from orchestrator.seams import RequestTally, TextSink
from orchestrator.values import Message, Reply

_RESERVED = frozenset({"model", "messages", "stream", "stream_options", "n", "timeout", "extra_headers"})
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")

# "max_tokens is too large: 16384. This model supports at most 4096 completion tokens", and how others say it.
_TOO_LARGE = re.compile(
    r"too (?:large|high|big|long)|at most|exceed|less than or equal|maximum|range|reduce|<=|>", re.IGNORECASE
)
_TOO_SMALL = re.compile(r"at least|below|minimum|too (?:small|low)|greater than or equal|>=", re.IGNORECASE)
_OF_THE_WINDOW = re.compile(r"context|window|input|prompt|messages", re.IGNORECASE)


class OpenAIChat:
    """Implements `seams.ChatModel` for one model name.

    `options` are further request fields (`temperature`, `reasoning_effort`, ...), sent as they are.
    `max_output_tokens` is the most tokens of one reply; None leaves it to the model.

    A refusal is a `Reply` whose text is what the API gave as its reason; a null content is an empty text.

    Raises `InvalidInput` for an option that belongs to this class.
    """

    def __init__(
        self,
        client: OpenAIClient,
        model: str,
        *,
        max_output_tokens: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self._model = model
        self._max_output_tokens = max_output_tokens
        self._options = dict(options or {})
        if taken := sorted(_RESERVED & self._options.keys()):
            raise InvalidInput("model_options", f"must not hold {taken[0]!r}.", "It is set by the orchestrator.")
        if limits := sorted(set(_OUTPUT_LIMITS) & self._options.keys()):
            raise InvalidInput(
                "model_options", f"must not hold {limits[0]!r}.", "Set max_output_tokens (RLM_MAX_OUTPUT_TOKENS)."
            )

        try:
            json.dumps(self._options, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(
                "model_options", f"must be JSON: {error}.", "Give texts, numbers, lists and objects of them."
            ) from None

    @property
    def name(self) -> str:
        return self._model

    @property
    def identity(self) -> str:
        """Equal for two of these exactly when equal messages are the same request: the key of a cache."""
        parts = (self._client.base_url, self._model, self._max_output_tokens, self._options)
        return json.dumps(parts, sort_keys=True, default=repr)

    async def chat(
        self,
        messages: Sequence[Message],
        span: Span,
        on_text: TextSink | None = None,
        *,
        max_output_tokens: int | None = None,
        tally: RequestTally | None = None,
    ) -> Reply:
        self._client.check_loop()
        tally = tally or RequestTally()
        limits = [limit for limit in (self._max_output_tokens, max_output_tokens) if limit is not None]
        limit = min(limits) if limits else None
        refused = self._client.dialect.refused_limits.get(self._model)
        if limit is not None and refused is not None and limit >= refused:
            limit = None
        attempt = _Attempt(limit)
        while True:
            outcome = await self._request(messages, attempt, on_text, tally)
            match outcome:
                case Reply():
                    return outcome
                case ModelFailed():
                    raise outcome
                case _Attempt():
                    attempt = outcome

    async def _request(
        self, messages: Sequence[Message], attempt: _Attempt, on_text: TextSink | None, tally: RequestTally
    ) -> Reply | ModelFailed | _Attempt:
        # Returned rather than raised, so that no SDK exception, which quotes the request, is chained to ours.
        from orchestrator.llm import openai_sdk

        body = self._body(messages, attempt.output_limit, streamed=on_text is not None)
        tally.sent += 1
        secret = self._client.secret
        try:
            async with asyncio.timeout(self._client.timeout_s):
                if on_text is None:
                    reply = self._read_plain(await self._client.plain.chat(body))
                else:
                    reply = await self._stream(body, on_text)
        except TimeoutError:
            detail = f"no complete answer within {self._client.timeout_s:g} s. Raise request_timeout_s."
            return ModelFailed(ModelFailure.TIMED_OUT, self._model, detail)
        except ModelFailed as failed:
            return failed
        except Exception as error:
            failure = openai_sdk.rename(error, self._model, secret)
            if failure is None:
                raise
            if (other := self._adapted(openai_sdk.rejected_parameter(error), body, attempt)) is not None:
                tally.closed += 1
                return other
            if failure.unbilled:
                tally.closed += 1
            return failure.error
        tally.closed += 1
        return reply

    def _body(self, messages: Sequence[Message], limit: int | None, *, streamed: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role.value, "content": message.content} for message in messages],
        }
        dialect = self._client.dialect
        if limit is not None:
            body[dialect.output_limit_field] = limit
        if streamed:
            body["stream"] = True
            if dialect.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return body | self._options

    def _adapted(self, complaint: str, body: Mapping[str, Any], attempt: _Attempt) -> _Attempt | None:
        """What to try next after a rejected parameter, and never what was tried before, so that this ends."""
        dialect = self._client.dialect
        if "stream_options" in body and ("stream_options" in complaint or "include_usage" in complaint):
            dialect.stream_usage = False
            return attempt
        if attempt.output_limit is not None and self._is_limit_refused(complaint, attempt.output_limit):
            return replace(attempt, output_limit=None)
        for sent, other in (_OUTPUT_LIMITS, _OUTPUT_LIMITS[::-1]):
            # "Unsupported parameter: 'max_tokens' ... Use 'max_completion_tokens' instead."
            if sent in body and sent in complaint and other in complaint and not attempt.other_field:
                dialect.output_limit_field = other
                return replace(attempt, other_field=True)
        return None

    def _is_limit_refused(self, complaint: str, limit: int) -> bool:
        """Whether the API finds this output limit too large.

        The model then gives less by itself, so that without the limit no reply is longer: a budget that counts on it
        is as safe. It is remembered, unless it is this prompt that leaves too little of the window.
        """
        named = str(limit) in complaint.replace(",", "") or any(name in complaint for name in _OUTPUT_LIMITS)
        if not (named and _TOO_LARGE.search(complaint)) or _TOO_SMALL.search(complaint):
            return False
        if not _OF_THE_WINDOW.search(complaint):
            known = self._client.dialect.refused_limits
            known[self._model] = min(limit, known.get(self._model, limit))
        return True

    def _malformed(self, detail: str) -> ModelFailed:
        from orchestrator.llm import openai_sdk

        return openai_sdk.malformed(self._model, detail, self._client.secret)

    def _error_body(self, body: object) -> ModelFailed:
        from orchestrator.llm import openai_sdk

        return openai_sdk.error_body(self._model, body, self._client.secret)

    def _read_plain(self, answer: bytes) -> Reply:
        try:
            result = answer_of(answer)
        except msgspec.ValidationError as error:
            raise self._malformed(f"the answer has another shape: {error}") from None
        except msgspec.DecodeError:
            raise self._malformed(f"expected JSON, got {answer[:80].decode('utf-8', 'replace')!r}") from None
        if result.error:
            raise self._error_body(result.error)
        if not result.choices:
            raise self._malformed("the answer has no choices")
        message, finish = result.choices[0].message, result.choices[0].finish_reason
        if message is None:
            raise self._malformed("the answer's choice has no message")
        collected = Collected(model=result.model, usage=usage_of(result.usage))
        collected.text.append(text_of(message.content))
        collected.refusal.append(text_of(message.refusal))
        collected.finish = finish if isinstance(finish, str) else None
        return collected.reply(self._model)

    async def _stream(self, body: dict[str, Any], on_text: TextSink) -> Reply:
        collected = Collected()
        # The SDK refuses keywords that it does not know; what other servers understand goes around it.
        known = {name: body[name] for name in ("model", "messages", "stream")}
        other = {name: value for name, value in body.items() if name not in known}
        async with await self._client.sdk.chat.completions.create(**known, extra_body=other) as stream:
            media_type = stream.response.headers.get("content-type", "").split(";")[0].strip().lower()
            if media_type in ("text/html", "application/json"):
                raise self._malformed(f"expected a stream of events, got {media_type}")
            async for chunk in stream:
                try:
                    pieces = collected.take(chunk)
                except (AttributeError, TypeError) as error:  # the SDK checks nothing of what a server sends
                    raise self._malformed(f"a chunk has another shape: {error}") from None
                for piece in pieces:
                    on_text(piece)
        if collected.finish is None and collected.usage is None:
            raise ModelFailed(ModelFailure.CONNECTION, self._model, "the stream ended before the answer did")
        return collected.reply(self._model)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """How a request is made that a server may turn down for a parameter."""

    output_limit: int | None
    other_field: bool = False  # the limit's field is the second of the two
