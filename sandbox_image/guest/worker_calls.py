"""A call of the host's Ask: what it says, and what its end means. Everything here may be called twice.

Named tuples here and in the other modules of the worker: `dataclasses` would be a quarter of an idle worker's memory.
"""

from __future__ import annotations

from typing import NamedTuple

import guest_messages as pb
from guest_grpc import (
    CANCELLED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    OK,
    PREFIX,
    RESOURCE_EXHAUSTED,
    STATUS_OF_RESET,
    UNKNOWN,
    request_headers,
    status_of,
    unquoted,
)
from worker_http2 import Call

HEADERS = request_headers(pb.ASK_METHOD)
MAX_REASON = 2_000  # characters of what the host says of a call that it refuses

Outcome = tuple[str, str]  # a reason and a text; the reason is empty for an answer

_KINDS = {"text": pb.CONTEXT_KIND_TEXT, "json": pb.CONTEXT_KIND_JSON, "bytes": pb.CONTEXT_KIND_BYTES}
_REASONS = {value: name.removeprefix("FAILURE_REASON_").lower() for name, value in pb.FailureReason.items()}
_REFUSALS = {
    INVALID_ARGUMENT: "invalid",
    RESOURCE_EXHAUSTED: "invalid",
    CANCELLED: "ended",
    FAILED_PRECONDITION: "ended",
}


class Question(NamedTuple):
    """A prompt, and the data beside it: `kind` is "", "text", "json" or "bytes"; texts are UTF-8."""

    prompt: bytes
    kind: str
    data: bytes


class Answered(NamedTuple):
    """One outcome a question, in the questions' order."""

    outcomes: list[Outcome]


class Refused(NamedTuple):
    """The host did not take the questions at all: `kind` is "invalid", "ended" or "failed"."""

    kind: str
    message: str


Reply = Answered | Refused


def size_of(questions: list[Question]) -> int:
    """The bytes of the prompts and of the data beside them."""
    return sum([len(question.prompt) + len(question.data) for question in questions])


def body_of(questions: list[Question], max_concurrent: int, stop_at_failure: bool, recursive: bool | None) -> bytes:
    """What is sent of a call."""
    message = pb.AskRequest(
        questions=[
            pb.Question(prompt=prompt.decode(), context=pb.Attachment(kind=_KINDS[kind], data=data) if kind else None)
            for prompt, kind, data in questions
        ],
        max_concurrent=max_concurrent,
        stop_at_failure=stop_at_failure,
        recursive=recursive,
    ).encode()
    return PREFIX.pack(0, len(message)) + message


def reply_of(call: Call, asked: int) -> Reply:
    """What came of a call that has ended, with so many questions."""
    status, details = _status(call)
    if status != OK:
        return Refused(_REFUSALS.get(status, "failed"), (details or "the host could not be asked")[:MAX_REASON])
    data = call.data
    if len(data) < PREFIX.size or PREFIX.unpack_from(data) != (0, len(data) - PREFIX.size):
        return Refused("failed", "the host's answer cannot be read")
    try:
        slots = pb.AskResponse.decode(data[PREFIX.size :]).slots
    except ValueError:
        return Refused("failed", "the host's answer cannot be read")
    if len(slots) != asked:
        return Refused("failed", f"{asked} questions got {len(slots)} answers")
    return Answered([("", slot.text) if slot.text is not None else _failure(slot.failure) for slot in slots])


def _failure(failure: pb.Failure | None) -> Outcome:
    failure = failure or pb.Failure()
    return _REASONS.get(failure.reason, "unspecified"), failure.message


def _status(call: Call) -> tuple[int, str]:
    headers = call.headers
    if (http := headers.get(b":status", b"200")) != b"200":
        return UNKNOWN, f"HTTP status {http.decode('ascii', 'replace')}"
    if (status := headers.get(b"grpc-status")) is not None:
        if status == b"0":
            return OK, ""
        return status_of(status), unquoted(headers.get(b"grpc-message", b""))
    if call.error is None:
        return UNKNOWN, "the call ended without a status"
    return STATUS_OF_RESET.get(call.error, INTERNAL), "the call was reset"
