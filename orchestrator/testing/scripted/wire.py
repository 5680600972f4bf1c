"""OpenAI's chat completion format, both ways: JSON to `ChatRequest`, `Reply` to JSON or server-sent events.

Pure: bytes and values in, bytes and values out. The shapes are those of the public API reference of
`POST /v1/chat/completions`.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from orchestrator.testing.scripted.chat import (
    CHARACTERS_PER_TOKEN,
    ApiError,
    ChatRequest,
    Message,
    Reply,
    Role,
    Usage,
    UsageReport,
    token_count,
)

FINGERPRINT = "scripted"
OWNER = "scripted-policy"
DONE = b"data: [DONE]\n\n"

_ROLES = get_args(Role)
_CHUNKS_PER_REPLY = 64


class RequestRejected(Exception):
    """A request that breaks a rule of the format; `error` is the response to it."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def rejected(param: str | None, message: str) -> RequestRejected:
    """A 400 that names the field and its rule."""
    return RequestRejected(ApiError(400, message, param=param))


def decode(body: bytes) -> Any:
    """The JSON value, or the text of a body that is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def parse_request(
    body: Any, *, headers: Mapping[str, str] | None = None, ordinal: int = 0, attempt: int = 1
) -> ChatRequest:
    """The checked view of a decoded body: `{"model": str, "messages": [{"role", "content"}, ...], ...}`.

    Raises RequestRejected for the first rule that the body breaks. Fields that do not matter to a script
    (`temperature`, `tools`, ...) are let through, and are in `raw`.
    """
    if not isinstance(body, dict):
        raise rejected(None, "We could not parse the JSON body of your request: it must be a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise rejected("model", "you must provide a model parameter: 'model' must be a non-empty string.")
    messages = _messages(body.get("messages"))
    stream = _flag(body, "stream")
    if (count := body.get("n")) not in (None, 1):
        raise rejected("n", f"Invalid value for 'n': a scripted model gives exactly 1 choice, not {count!r}.")
    return ChatRequest(
        model=model,
        messages=messages,
        stream=stream,
        include_usage=_include_usage(body, stream),
        max_tokens=_max_tokens(body),
        raw=body,
        headers=headers or {},
        ordinal=ordinal,
        attempt=attempt,
        digest=_digest(model, messages),
    )


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise rejected("messages", "Invalid value for 'messages': expected a non-empty array of objects.")
    return tuple(_message(item, f"messages.[{index}]") for index, item in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise rejected(where, f"Invalid type for '{where}': expected an object.")
    role: Any = value.get("role")
    if role not in _ROLES:
        supported = ", ".join(f"'{name}'" for name in _ROLES)
        raise rejected(f"{where}.role", f"Invalid value: {role!r}. Supported values are: {supported}.")
    content = value.get("content")
    match content:
        case str():
            return Message(role, content)
        case list():
            return Message(role, "".join(_part(part, f"{where}.content") for part in content))
        case None if role == "assistant":
            return Message(role, "")
        case _:
            raise rejected(
                f"{where}.content",
                f"Invalid type for '{where}.content': expected a string or an array of parts"
                " (null is for assistant messages only).",
            )


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise rejected(where, f"Invalid type for '{where}': each part must be an object with a 'type'.")
    text = part.get("text", "")
    if not isinstance(text, str):
        raise rejected(where, f"Invalid type for '{where}': the 'text' of a part must be a string.")
    return text


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise rejected(name, f"Invalid type for '{name}': expected a boolean, but got {value!r}.")
    return value


def _include_usage(body: Mapping[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise rejected("stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    if not isinstance(options, dict):
        raise rejected("stream_options", "Invalid type for 'stream_options': expected an object.")
    return _flag(options, "include_usage")


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise rejected(name, f"Invalid value for '{name}': expected an integer of at least 1.")
        return value
    return None


def _digest(model: str, messages: tuple[Message, ...]) -> str:
    digest = hashlib.blake2b(model.encode("utf-8", "surrogatepass"), digest_size=16)
    for message in messages:
        text = message.text.encode("utf-8", "surrogatepass")
        # The length keeps two messages apart from one that holds both texts.
        digest.update(f"\0{message.role}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()


def error_body(error: ApiError) -> bytes:
    """`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`"""
    return to_json(error_value(error))


def error_value(error: ApiError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def prompt_tokens(request: ChatRequest) -> int:
    return sum(token_count(message.text) for message in request.messages)


def within_limit(reply: Reply, request: ChatRequest) -> Reply:
    """The reply as the request's token limit leaves it."""
    if reply.text is None or request.max_tokens is None or token_count(reply.text) <= request.max_tokens:
        return reply
    text = reply.text[: request.max_tokens * CHARACTERS_PER_TOKEN]
    return Reply(text, "length", reply.usage, reply.refusal, reply.model)


def usage_of(reply: Reply, request: ChatRequest) -> Usage | None:
    """The usage to report, or None where the reply leaves it out."""
    match reply.usage:
        case Usage() as usage:
            return usage
        case UsageReport.OMITTED:
            return None
        case UsageReport.COUNTED:
            said = token_count(reply.text or "") + token_count(reply.refusal or "")
            return Usage(prompt_tokens(request), said)


def completion(reply: Reply, request: ChatRequest) -> dict[str, Any]:
    """The `chat.completion` object of a plain response."""
    reply = within_limit(reply, request)
    value = _head(reply, request, "chat.completion")
    value["choices"] = [
        {
            "index": 0,
            "message": {"role": "assistant", "content": reply.text, "refusal": reply.refusal},
            "logprobs": None,
            "finish_reason": reply.finish_reason,
        }
    ]
    if (usage := usage_of(reply, request)) is not None:
        value["usage"] = _usage(usage)
    return value


def completion_body(reply: Reply, request: ChatRequest) -> bytes:
    return to_json(completion(reply, request))


def events(reply: Reply, request: ChatRequest) -> list[bytes]:
    """The server-sent events of a stream: role, content chunks (at most 64), finish reason, usage if it was
    asked for, `[DONE]`.
    """
    reply = within_limit(reply, request)
    head = _head(reply, request, "chat.completion.chunk")
    if request.include_usage:
        # The API sends the field as null with every chunk but the last.
        head["usage"] = None
    opening = {"role": "assistant", "content": "" if reply.text is not None else None}
    chunks = [event({**head, "choices": [_choice(opening, None)]})]
    chunks += _content_events(head, "content", reply.text or "")
    chunks += _content_events(head, "refusal", reply.refusal or "")
    chunks.append(event({**head, "choices": [_choice({}, reply.finish_reason)]}))
    usage = usage_of(reply, request)
    if request.include_usage and usage is not None:
        chunks.append(event({**head, "choices": [], "usage": _usage(usage)}))
    chunks.append(DONE)
    return chunks


def _content_events(head: Mapping[str, Any], field: str, text: str) -> list[bytes]:
    # The events differ in nothing but their piece of text: written once around it, a stream costs a fifth.
    # The empty text is the last `""` of the event, whatever the names in its head hold.
    before, _, after = event({**head, "choices": [_choice({field: ""}, None)]}).rpartition(b'""')
    return [before + json.dumps(piece).encode() + after for piece in pieces(text)]


def event(value: Mapping[str, Any]) -> bytes:
    """One server-sent event that carries JSON."""
    return b"data: " + to_json(value) + b"\n\n"


def chunk_without_choices(reply: Reply, request: ChatRequest) -> dict[str, Any]:
    return {**_head(reply, request, "chat.completion.chunk"), "choices": []}


def pieces(text: str) -> Iterator[str]:
    """The text in at most 64 pieces of one token or more."""
    size = max(CHARACTERS_PER_TOKEN, -(-len(text) // _CHUNKS_PER_REPLY))
    return (text[start : start + size] for start in range(0, len(text), size))


def model_value(name: str) -> dict[str, Any]:
    """One entry of `GET /v1/models`; `owned_by` says that no model is behind it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


def _head(reply: Reply, request: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-scripted-{request.ordinal}",
        "object": kind,
        "created": int(time.time()),
        "model": reply.model or request.model,
        "system_fingerprint": FINGERPRINT,
    }


def _choice(delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def to_json(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, separators=(",", ":")).encode()
