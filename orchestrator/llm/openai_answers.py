"""Answers of a chat completions API as they come, and what is read of them: any field may be missing, or bent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.text import half_at_end, repaired
from orchestrator.values import FinishReason, Reply, Usage

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk

_MOST = 2**53  # tokens; what is beyond is no count, and the store could not hold sums of it
_FINISH_REASONS: Mapping[str | None, FinishReason] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class _Message(msgspec.Struct):
    content: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    finish_reason: Any = None


class Answer(msgspec.Struct):
    """A chat completion, as far as it is read; compatible servers leave out, or bend, the rest."""

    choices: list[_Choice] | None = None
    model: str | None = None
    usage: Any = None
    error: Any = None


@dataclass(slots=True)
class Collected:
    """A reply as it comes together."""

    model: str | None = None
    usage: Usage | None = None
    finish: str | None = None
    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    half: str = ""  # of a character that two chunks share

    def take(self, chunk: ChatCompletionChunk) -> list[str]:
        """Adds a chunk; returns the pieces of text that came with it."""
        pieces = []
        self.model = chunk.model or self.model
        self.usage = usage_of(chunk.usage) or self.usage
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is not None:
                if piece := self._whole(text_of(delta.content)):
                    pieces.append(piece)
                if piece := text_of(getattr(delta, "refusal", None)):
                    self.refusal.append(piece)
            self.finish = choice.finish_reason or self.finish
        self.text += pieces
        return pieces

    def reply(self, configured_model: str) -> Reply:
        text, refusal = repaired("".join(self.text) + self.half), repaired("".join(self.refusal))
        finish = FinishReason.REFUSAL if refusal else _FINISH_REASONS.get(self.finish, FinishReason.OTHER)
        return Reply(text or refusal, finish, self.usage, repaired(self.model or configured_model))

    def _whole(self, piece: str) -> str:
        """The piece, with the half that the one before ended with, and without a half that it ends with itself."""
        if not piece:
            return ""
        piece, self.half = self.half + piece, ""
        if half_at_end(piece):
            piece, self.half = piece[:-1], piece[-1]
        return repaired(piece)


def answer_of(data: bytes) -> Answer:
    """Raises `msgspec.ValidationError` for another shape, `msgspec.DecodeError` for what is no JSON."""
    try:
        return msgspec.json.decode(data, type=Answer)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        # JSON may escape half a character, and msgspec then takes none of it: the rest of the answer is as good.
        try:
            return msgspec.convert(json.loads(data), Answer)
        except (ValueError, RecursionError) as refusal:
            raise (refusal if isinstance(refusal, msgspec.ValidationError) else error) from None


def text_of(content: object) -> str:
    """A content field as text: null is empty, and some servers send a list of parts."""
    match content:
        case str():
            return content
        case list():
            return "".join(text_of(part.get("text")) for part in content if isinstance(part, Mapping))
        case _:
            return ""


def usage_of(usage: Any) -> Usage | None:
    """Tokens, or None where the API left them out or sent something else than counts."""
    counts = (_field(usage, "prompt_tokens"), _field(usage, "completion_tokens"))
    match counts:
        case (int() as prompt, int() as completion) if 0 <= prompt <= _MOST and 0 <= completion <= _MOST:
            cached = _field(_field(usage, "prompt_tokens_details"), "cached_tokens")
            return Usage(prompt, completion, cached if isinstance(cached, int) and 0 <= cached <= _MOST else 0)
        case _:
            return None


def _field(value: Any, name: str) -> Any:
    """Of a JSON object, or of the SDK's class for one; None where there is none."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
