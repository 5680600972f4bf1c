"""Requests to what the desks take, checked: what breaks a rule is named as the request names it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TypeVar, cast

from google.protobuf.duration_pb2 import Duration

from orchestrator.errors import InvalidInput
from orchestrator.hosting.orders import ContextHeader, RunOrder, RunQuery, SandboxModel, SandboxOrder, Uploaded
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.protocol.rlm.v1 import events_pb2, run_pb2, sandbox_pb2
from orchestrator.values import Attachment, ContextKind
from orchestrator.wire.caps import CHUNK_BYTES, DEFAULT_PAGE, LABEL_BYTES, LABELS, MAX_PAGE, REQUEST_ID_CHARS
from orchestrator.wire.settings import chosen, limits_value
from orchestrator.wire.structs import UnknownWord, enum_tables
from orchestrator.wire.times import seconds_of, time_of
from orchestrator.wire.views import state_value

T = TypeVar("T")
MOST_SEQ = 2**63 - 1

_, _KINDS = enum_tables(ContextKind, events_pb2.ContextKind.DESCRIPTOR)


def run_order(
    request: run_pb2.StartRunRequest, desk: RunDesk, principal: Principal, trace_context: Mapping[str, str]
) -> RunOrder:
    given = chosen(request.settings) if request.HasField("settings") else {}
    return RunOrder(
        principal=principal,
        query=request.query,
        request_id=_request_id(request.request_id),
        context=_context(request),
        settings=desk.settings_of(given) if given else None,
        chosen=given,
        session_id=request.session_id or None,
        keep_session_s=_seconds(request.keep_session, "keep_session"),
        labels=_labels(request.labels),
        trace_context=trace_context,
    )


def sandbox_order(
    request: sandbox_pb2.CreateSandboxRequest, principal: Principal, trace_context: Mapping[str, str]
) -> SandboxOrder:
    model = None
    if request.HasField("model"):
        if not request.model.model:
            raise InvalidInput("model.model", "is empty.", "Name a model, or leave `model` out.")
        model = SandboxModel(request.model.model, limits_value(request.model.limits))
    return SandboxOrder(
        principal=principal,
        request_id=_request_id(request.request_id),
        context=_context(request),
        model=model,
        idle_timeout_s=_seconds(request.idle_timeout, "idle_timeout") if request.HasField("idle_timeout") else None,
        labels=_labels(request.labels),
        trace_context=trace_context,
    )


def run_query(request: run_pb2.ListRunsRequest) -> RunQuery:
    try:
        states = frozenset(state_value(number) for number in request.states)
    except UnknownWord as error:
        raise InvalidInput("states", f"{error}.") from None
    return RunQuery(
        page_size=page_size(request.page_size),
        page_token=request.page_token,
        states=states,
        session_id=request.session_id or None,
        started_after=time_of(request.started_after) if request.HasField("started_after") else None,
        started_before=time_of(request.started_before) if request.HasField("started_before") else None,
        labels=_labels(request.labels),
    )


def after_seq(request: run_pb2.WatchRunRequest) -> int:
    if request.after_seq > MOST_SEQ:
        raise InvalidInput("after_seq", f"is at most 2^63 - 1; it is {request.after_seq}.", "Give the last seq seen.")
    return request.after_seq


def page_size(given: int) -> int:
    if given > MAX_PAGE:
        raise InvalidInput("page_size", f"is at most {MAX_PAGE}; it is {given}.", "Ask for the next pages by token.")
    return given or DEFAULT_PAGE


def header_of(request: run_pb2.UploadContextRequest) -> ContextHeader:
    if request.WhichOneof("part") != "header":
        raise InvalidInput("header", "is missing.", "Send it first, and then the chunks.")
    kind = _KINDS.get(request.header.kind)
    if kind is None:
        raise InvalidInput("header.kind", f"is not one of {', '.join(_KINDS.values())}.")
    if len(request.header.sha256) != 32:
        raise InvalidInput("header.sha256", f"has 32 bytes; it has {len(request.header.sha256)}.")
    return ContextHeader(kind, request.header.size_bytes, request.header.sha256)


def chunk_of(request: run_pb2.UploadContextRequest | run_pb2.ImportRunRequest) -> bytes:
    if isinstance(request, run_pb2.UploadContextRequest) and request.WhichOneof("part") != "chunk":
        raise InvalidInput("chunk", "is missing.", "After the header come chunks only.")
    if len(request.chunk) > CHUNK_BYTES:
        raise InvalidInput("chunk", f"has at most {CHUNK_BYTES:,} bytes; it has {len(request.chunk):,}.")
    return request.chunk


def time_limit(request: sandbox_pb2.RunCellRequest) -> float | None:
    if not request.HasField("time_limit"):
        return None
    limit_s = seconds_of(request.time_limit)
    if limit_s <= 0:
        raise InvalidInput("time_limit", f"must be longer than 0; it is {limit_s:g} s.")
    return limit_s


def closable(items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """The desks' iterators are generators, whose end is to be awaited."""
    return cast("AsyncGenerator[T, None]", items)


def _context(request: run_pb2.StartRunRequest | sandbox_pb2.CreateSandboxRequest) -> Attachment | Uploaded | None:
    match request.WhichOneof("context"):
        case "text":
            return Attachment(ContextKind.TEXT, request.text.encode())
        case "json":
            return Attachment(ContextKind.JSON, request.json.encode())
        case "context_id":
            return Uploaded(request.context_id)
        case None:
            return None


def _request_id(given: str) -> str:
    if len(given) > REQUEST_ID_CHARS or not all("!" <= character <= "~" for character in given):
        raise InvalidInput(
            "request_id", f"has at most {REQUEST_ID_CHARS} printable ASCII characters.", "A UUID does well."
        )
    return given


def _labels(given: Mapping[str, str]) -> dict[str, str]:
    if len(given) > LABELS:
        raise InvalidInput("labels", f"are at most {LABELS}; there are {len(given)}.")
    for name, value in given.items():
        if not name or len(name.encode()) > LABEL_BYTES or len(value.encode()) > LABEL_BYTES:
            raise InvalidInput("labels", f"have names and values of at most {LABEL_BYTES} bytes, and no empty name.")
    return dict(given)


def _seconds(given: Duration, name: str) -> float:
    seconds = seconds_of(given)
    if seconds < 0:
        raise InvalidInput(name, f"must not be negative; it is {seconds:g} s.")
    return seconds
