"""Errors to `google.rpc.Status` and back: one table, so that a client raises what the library raises.

Each class of `orchestrator.errors` has a status code, and its name is the reason of its `ErrorInfo` (`NotFound` is
NOT_FOUND). What its constructor takes is in the ErrorInfo's metadata, as text: a client in any language decides by it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from orchestrator import errors as er
from orchestrator.wire.structs import clean

DOMAIN = "rlm-orchestrator"
# A status travels in headers: many clients take no more than 8 KiB of them, and percent-encoding triples a byte.
_TEXT_BYTES = 768
_METADATA_BYTES = 2048

_MODEL_CODES = {
    er.ModelFailure.RATE_LIMITED: code_pb2.UNAVAILABLE,
    er.ModelFailure.SERVER: code_pb2.UNAVAILABLE,
    er.ModelFailure.CONNECTION: code_pb2.UNAVAILABLE,
    er.ModelFailure.MALFORMED: code_pb2.UNAVAILABLE,
    er.ModelFailure.TIMED_OUT: code_pb2.DEADLINE_EXCEEDED,
    er.ModelFailure.QUOTA: code_pb2.RESOURCE_EXHAUSTED,
}
_FILE_CODES = {
    er.FileFailure.INVALID_PATH: code_pb2.INVALID_ARGUMENT,
    er.FileFailure.NOT_FOUND: code_pb2.NOT_FOUND,
    er.FileFailure.TOO_LARGE: code_pb2.RESOURCE_EXHAUSTED,
    er.FileFailure.DISK_FULL: code_pb2.RESOURCE_EXHAUSTED,
}
_STORE_CODES = {
    er.StoreFailure.DISK_FULL: code_pb2.RESOURCE_EXHAUSTED,
    er.StoreFailure.LOCKED: code_pb2.UNAVAILABLE,
    er.StoreFailure.DAMAGED: code_pb2.DATA_LOSS,
}
_SERVICE_CODES = {
    er.ServiceFailure.UNREACHABLE: code_pb2.UNAVAILABLE,
    er.ServiceFailure.TIMED_OUT: code_pb2.DEADLINE_EXCEEDED,
    er.ServiceFailure.UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
    er.ServiceFailure.NOT_PERMITTED: code_pb2.PERMISSION_DENIED,
    er.ServiceFailure.OVERLOADED: code_pb2.RESOURCE_EXHAUSTED,
    er.ServiceFailure.UNSUPPORTED: code_pb2.UNIMPLEMENTED,
    er.ServiceFailure.RUN_STOPPED: code_pb2.CANCELLED,
    er.ServiceFailure.INTERNAL: code_pb2.INTERNAL,
}
CODES: dict[type[er.RLMError], Callable[[Any], int]] = {
    er.InvalidInput: lambda _: code_pb2.INVALID_ARGUMENT,
    er.ModelFailed: lambda error: _MODEL_CODES.get(error.kind, code_pb2.FAILED_PRECONDITION),
    er.SandboxUnavailable: lambda _: code_pb2.UNAVAILABLE,
    er.SandboxLost: lambda _: code_pb2.ABORTED,
    er.BudgetExceeded: lambda _: code_pb2.RESOURCE_EXHAUSTED,
    er.DeadlineExceeded: lambda _: code_pb2.DEADLINE_EXCEEDED,
    er.RunNotReplayable: lambda _: code_pb2.FAILED_PRECONDITION,
    er.NotFound: lambda _: code_pb2.NOT_FOUND,
    er.RequestConflict: lambda _: code_pb2.ALREADY_EXISTS,
    er.Busy: lambda _: code_pb2.FAILED_PRECONDITION,
    er.QuotaExceeded: lambda _: code_pb2.RESOURCE_EXHAUSTED,
    er.TooLarge: lambda _: code_pb2.RESOURCE_EXHAUSTED,
    er.FileFailed: lambda error: _FILE_CODES.get(error.kind, code_pb2.FAILED_PRECONDITION),
    er.ShuttingDown: lambda _: code_pb2.UNAVAILABLE,
    er.StoreFailed: lambda error: _STORE_CODES.get(error.kind, code_pb2.INTERNAL),
    er.ServiceFailed: lambda error: _SERVICE_CODES[error.kind],
}


def reason_of(error: er.RLMError) -> str:
    """The machine-readable word for it, such as "MODEL_FAILED"."""
    return _reason(type(error))


def metadata_of(error: er.RLMError) -> dict[str, str]:
    """What its class is made of, as text; what is not known is left out."""
    found = {name: getattr(error, name) for name in _parameters(type(error))}
    given = {name: _text(value) for name, value in found.items() if value not in (None, "")}
    if sum(len(value.encode()) for value in given.values()) > _METADATA_BYTES:
        given = {name: _cut(value, _METADATA_BYTES // len(given)) for name, value in given.items()}
    return given


def status_of(error: er.RLMError) -> status_pb2.Status:
    code = next((CODES[kind](error) for kind in type(error).__mro__ if kind in CODES), code_pb2.UNKNOWN)
    status = status_pb2.Status(code=code, message=_cut(str(error), _TEXT_BYTES))
    info = error_details_pb2.ErrorInfo(reason=reason_of(error), domain=DOMAIN, metadata=metadata_of(error))
    status.details.add().Pack(info)
    match error:
        case er.InvalidInput():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=_cut(error.name, _TEXT_BYTES // 4),
                description=_cut(f"{error.rule} {error.remedy}".strip(), _TEXT_BYTES // 2),
            )
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        case er.QuotaExceeded():
            over = error_details_pb2.QuotaFailure.Violation(subject=error.quota, description=_cut(str(error), 512))
            status.details.add().Pack(error_details_pb2.QuotaFailure(violations=[over]))
        case _:
            pass
    if (wait_s := _retry_after_s(error)) is not None:
        delay = Duration()
        delay.FromMilliseconds(round(wait_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_of(code: int, message: str, details: bytes | None = None) -> er.RLMError:
    """What a call's status was made of. `details` is a serialized Status; without it, or when it is not ours, the
    status code decides."""
    info = _error_info(details)
    if info is not None and info.domain == DOMAIN:
        return error_from(info.reason, message, info.metadata)
    if code == code_pb2.CANCELLED:
        return er.ServiceFailed(er.ServiceFailure.UNREACHABLE, message or "the server ended the call.")
    kind = next((kind for kind, known in _SERVICE_CODES.items() if known == code), er.ServiceFailure.INTERNAL)
    return er.ServiceFailed(kind, message or code_pb2.Code.Name(code).lower().replace("_", " "))


def error_from(reason: str, message: str, metadata: Mapping[str, str]) -> er.RLMError:
    """The exception of a reason; its text is always `message`. A newer server's reason is a `ServiceFailed`."""
    if reason in _STOPPED:
        return er.ServiceFailed(er.ServiceFailure.RUN_STOPPED, message or _STOPPED[reason])
    kind = _KINDS.get(reason)
    if kind is None:
        return er.ServiceFailed(er.ServiceFailure.INTERNAL, message or reason)
    parameters = _parameters(kind)
    try:
        given = {name: _value(hint, metadata.get(name)) for name, hint in parameters.items()}
    except ValueError:
        return er.ServiceFailed(er.ServiceFailure.INTERNAL, message or reason)
    error = kind(**given) if parameters else kind(message) if kind.__init__ is Exception.__init__ else kind()
    if message:
        error.args = (message,)
    return error


_STOPPED = {"CANCELLED": "the run was cancelled", "INTERRUPTED": "the service went down while the run was under way"}


def _retry_after_s(error: er.RLMError) -> float | None:
    match error:
        case er.ModelFailed(retry_after_s=float(wait_s)):
            return wait_s
        case er.ShuttingDown() | er.SandboxUnavailable():
            return 5.0
        case er.QuotaExceeded(quota="max_runs" | "max_sandboxes" | "max_running"):
            return 2.0  # others end, and make room
        case _:
            return None


def _error_info(details: bytes | None) -> error_details_pb2.ErrorInfo | None:
    if not details:
        return None
    try:
        status = status_pb2.Status.FromString(details)
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info
    except DecodeError:
        pass  # somebody else's trailers
    return None


def _reason(kind: type[er.RLMError]) -> str:
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in kind.__name__).lstrip("_")


_KINDS = {_reason(kind): kind for kind in CODES}


def _parameters(kind: type[er.RLMError]) -> dict[str, Any]:
    """The constructor's parameters with their types; each is an attribute of the same name."""
    if kind.__init__ is Exception.__init__:
        return {}
    hints = get_type_hints(kind.__init__)
    return {name: hints[name] for name in inspect.signature(kind).parameters}


def _text(value: object) -> str:
    return clean(value.value if isinstance(value, StrEnum) else str(value))


def _value(hint: Any, text: str | None) -> Any:
    """Raises `ValueError`."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return None if text is None else _value(inner, text)
    if text is None and hint is not str:
        raise ValueError("missing")
    return hint(text or "")


def _cut(text: str, most_bytes: int) -> str:
    text = clean(text)
    if len(text) * 4 <= most_bytes or len(data := text.encode()) <= most_bytes:
        return text
    return data[: most_bytes - 3].decode(errors="ignore") + "..."
