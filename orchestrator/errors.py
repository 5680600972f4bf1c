"""Everything that the orchestrator raises on purpose.

::

    RLMError
    ├── InvalidInput           a value from outside breaks a rule; names the input, the rule and the remedy
    ├── ModelFailed            a model call failed for good; `.kind` says how
    ├── SandboxUnavailable     no sandbox could be had: no engine, no image, no room in time, a failed start
    ├── SandboxLost            a sandbox that was there is gone; `.cause` says how
    ├── BudgetExceeded         a limit of the whole tree would be passed; `.limit` names it
    ├── DeadlineExceeded       the run's time is over
    ├── RunNotReplayable       a recorded run cannot be read, or decides otherwise now
    ├── NotFound               no such run, context, session or sandbox, or not one of the caller's
    ├── RequestConflict        a request id that was used for another order
    ├── Busy                   not while it runs, or while something uses it
    ├── QuotaExceeded          a principal has all that it may have; `.quota` names it
    ├── TooLarge               more bytes than is taken; `.limit` names the setting
    ├── FileFailed             a file in a sandbox cannot be written or read; `.kind` says why
    ├── ShuttingDown           the service takes no more work
    ├── StoreFailed            what a service keeps on disk cannot be read or written; `.kind` says why
    └── ServiceFailed          a service could not be asked, or refused for none of these reasons; `.kind` says why

A failure of model-written *code* is none of these: it is a `CellResult`. A caller who stops is
`asyncio.CancelledError`, which nothing here wraps. Libraries' exceptions are renamed in the one file
that imports the library.
"""

from __future__ import annotations

import math
from enum import StrEnum


class RLMError(Exception):
    """The root of this tree. `str()` of any of them is fit to be shown to a person."""


class InvalidInput(RLMError):
    """A value from outside breaks a rule.

    `name` is what the user calls it (an option, a variable, a parameter), `rule` what it must be, `remedy` what to do.
    """

    def __init__(self, name: str, rule: str, remedy: str = "") -> None:
        self.name = name
        self.rule = rule
        self.remedy = remedy
        super().__init__(f"{name}: {rule}" + (f" {remedy}" if remedy else ""))


class ModelFailure(StrEnum):
    AUTHENTICATION = "authentication"  # the key is missing, wrong, or has no right to this model
    RATE_LIMITED = "rate_limited"  # still, after all retries
    QUOTA = "quota"  # the account has no money left: retrying is pointless
    TOO_LONG = "too_long"  # the prompt is longer than the model's window
    REFUSED = "refused"  # the model refused, or a content filter cut its answer
    REJECTED = "rejected"  # another 4xx: the request is wrong
    NOT_FOUND = "not_found"  # no such model or no such address
    SERVER = "server"  # 5xx, still, after all retries
    CONNECTION = "connection"  # no connection, or it broke
    TIMED_OUT = "timed_out"  # no answer within the request's time
    MALFORMED = "malformed"  # the answer is not what the API promises


class ModelFailed(RLMError):
    """A model call failed for good. `detail` may quote the API and is for people, not for guests.

    `retry_after_s` is how long the API asked to wait before another try; None: it did not say.
    """

    def __init__(
        self,
        kind: ModelFailure,
        model: str,
        detail: str,
        *,
        status: int | None = None,
        attempts: int = 1,
        retry_after_s: float | None = None,
    ) -> None:
        self.kind = kind
        self.model = model
        self.detail = detail
        self.status = status
        self.attempts = attempts
        self.retry_after_s = retry_after_s
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        super().__init__(f"model {model!r} failed ({kind.value.replace('_', ' ')}){tries}: {detail}")


class SandboxUnavailable(RLMError):
    """No sandbox could be had. `remedy` says what to do about it."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(what + (f" {remedy}" if remedy else ""))


class LossCause(StrEnum):
    EXITED = "exited"  # the container ended: its agent died or the engine stopped it
    OUT_OF_MEMORY = "out_of_memory"  # the whole container hit its memory limit
    SILENT = "silent"  # no heartbeat for too long
    UNRESPONSIVE = "unresponsive"  # a cell neither ended nor could be killed in time
    PROTOCOL = "protocol"  # the guest broke the protocol or passed one of its caps
    CLOSED = "closed"  # used after its end


class SandboxLost(RLMError):
    """A sandbox that was there is gone, with all its state; it never comes back."""

    def __init__(self, name: str, cause: LossCause, detail: str = "") -> None:
        self.name = name
        self.cause = cause
        self.detail = detail
        super().__init__(
            f"sandbox {name} was lost ({cause.value.replace('_', ' ')})" + (f": {detail}" if detail else "")
        )


class BudgetExceeded(RLMError):
    """A limit of the whole tree would be passed, so the call was not made.

    `limit` is the name of a field of `values.Limits`, `allowed` its value, `used` what is used and reserved already,
    `wanted` what the refused step would have added.
    """

    def __init__(self, limit: str, allowed: float, used: float, wanted: float, remedy: str = "") -> None:
        self.limit = limit
        self.allowed = allowed
        self.used = used
        self.wanted = wanted
        self.remedy = remedy or f"Raise {limit}."
        super().__init__(
            f"the run's limit {limit}={_number(allowed)} would be passed: "
            f"{_number(used)} used or reserved, {_number(wanted)} more wanted. {self.remedy}"
        )


class DeadlineExceeded(RLMError):
    """The run's time is over."""

    def __init__(self, limit: str, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        super().__init__(f"the run's time is over: {limit}={_number(seconds)} s. Raise {limit}.")


class RunNotReplayable(RLMError):
    """A recorded run cannot be read, or the same history leads to another decision now."""


class NotFound(RLMError):
    """There is no such thing, or it belongs to another principal: the two are not told apart.

    `what` is "run", "context", "session" or "sandbox"; `detail` says what became of it, where that is known.
    """

    def __init__(self, what: str, identifier: str, detail: str = "") -> None:
        self.what = what
        self.identifier = identifier
        self.detail = detail
        super().__init__(f"there is no {what} {identifier!r}" + (f": {detail}" if detail else "."))


class RequestConflict(RLMError):
    """A request id that was used for another order."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        super().__init__(
            f"the request id {request_id!r} was used for another order. Choose a new id for what you mean as new."
        )


class Busy(RLMError):
    """Not while it runs, or while something uses it. `remedy` says what to do first."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(what + (f" {remedy}" if remedy else ""))


class QuotaExceeded(RLMError):
    """A principal, or the service, has all that it may have.

    `quota` is the name of the limit, `allowed` its value, `used` what is taken already.
    """

    def __init__(self, quota: str, allowed: float, used: float, remedy: str = "") -> None:
        self.quota = quota
        self.allowed = allowed
        self.used = used
        self.remedy = remedy
        super().__init__(
            f"the quota {quota}={_number(allowed)} is used up: {_number(used)} used." + (f" {remedy}" if remedy else "")
        )


class TooLarge(RLMError):
    """More bytes than is taken. `limit` is the name of the setting, `allowed` and `given` are in bytes."""

    def __init__(self, limit: str, allowed: int, given: int, remedy: str = "") -> None:
        self.limit = limit
        self.allowed = allowed
        self.given = given
        self.remedy = remedy
        super().__init__(
            f"{given:,} bytes are more than {limit}={allowed:,} allows." + (f" {remedy}" if remedy else "")
        )


class FileFailure(StrEnum):
    INVALID_PATH = "invalid_path"  # not relative, plain and below /tmp
    NOT_FOUND = "not_found"
    NOT_REGULAR = "not_regular"  # a directory, a link, a FIFO, a device, a socket
    TOO_LARGE = "too_large"
    DISK_FULL = "disk_full"  # of the sandbox
    NOT_PERMITTED = "not_permitted"


class FileFailed(RLMError):
    """A file in a sandbox cannot be written or read; the sandbox is as it was."""

    def __init__(self, kind: FileFailure, path: str, detail: str) -> None:
        self.kind = kind
        self.path = path
        self.detail = detail
        super().__init__(f"the file {path!r} ({kind.value.replace('_', ' ')}): {detail}")


class ShuttingDown(RLMError):
    """The service takes no more work: it is about to end."""

    def __init__(self) -> None:
        super().__init__("the service is shutting down and takes no more work. Try again a little later.")


class StoreFailure(StrEnum):
    DISK_FULL = "disk_full"
    LOCKED = "locked"  # another process has it open
    NEWER_SCHEMA = "newer_schema"  # a later release wrote it
    DAMAGED = "damaged"
    UNUSABLE = "unusable"  # no right to it, not a local disk, not a database


class StoreFailed(RLMError):
    """What a service keeps on disk cannot be read or written. `remedy` says what to do about it."""

    def __init__(self, kind: StoreFailure, detail: str, remedy: str) -> None:
        self.kind = kind
        self.detail = detail
        self.remedy = remedy
        super().__init__(f"{detail} {remedy}")


class ServiceFailure(StrEnum):
    UNREACHABLE = "unreachable"  # nobody answers, or the connection broke
    TIMED_OUT = "timed_out"  # no answer within the call's time
    UNAUTHENTICATED = "unauthenticated"  # no token, or not one of the service's
    NOT_PERMITTED = "not_permitted"
    OVERLOADED = "overloaded"  # too many calls at a time, or a message over its cap
    UNSUPPORTED = "unsupported"  # it does not know this call: an older release, or another service
    RUN_STOPPED = "run_stopped"  # somebody cancelled the run, or the service went down under it
    INTERNAL = "internal"  # an error of the service's own; its log says more


class ServiceFailed(RLMError):
    """A service could not be asked, or refused for none of the reasons above. `remedy` says what to do about it."""

    def __init__(self, kind: ServiceFailure, detail: str, remedy: str = "") -> None:
        self.kind = kind
        self.detail = detail
        self.remedy = remedy
        super().__init__(detail + (f" {remedy}" if remedy else ""))


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "an unknown amount"
    return f"{value:,.6g}" if value != int(value) else f"{int(value):,}"
