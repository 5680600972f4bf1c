"""What untrusted code is told when a question of its has no answer: a reason and a fixed text, no detail. Pure."""

from __future__ import annotations

from typing import Final

from orchestrator.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    ModelFailure,
    SandboxLost,
    SandboxUnavailable,
)
from orchestrator.values import Failed, FailureReason

# An API's own words may quote the key's tail, the account, or addresses inside the network.
_TEXTS: Final[dict[FailureReason, str]] = {
    FailureReason.MODEL: "the language model could not be called",
    FailureReason.REFUSED: "the language model refused to answer; ask in other words or send other data",
    FailureReason.TOO_LONG: "the question is too long for the language model; split it into smaller ones",
    FailureReason.BUDGET: "the run's budget does not allow another call; finish with what you have",
    FailureReason.DEADLINE: "the run's time is over; finish with what you have",
    FailureReason.SANDBOX: "the sub-call had no sandbox to run its code in",
    FailureReason.INVALID: "the question breaks a rule",
    FailureReason.CANCELLED: "another question of the batch failed before",
    FailureReason.NO_ROOM: "the answers to one call are too large together; ask fewer questions at once",
}

_MODEL_TEXTS: Final[dict[ModelFailure, str]] = {
    ModelFailure.RATE_LIMITED: "the language model is overloaded; ask fewer at a time",
    ModelFailure.TIMED_OUT: "the language model did not answer in time; ask for less",
    ModelFailure.MALFORMED: "the language model gave no usable answer; ask again in other words",
}


def as_slot(failure: Exception) -> Failed:
    """Any failure of one question, as its slot in the batch."""
    match failure:
        case ModelFailed(kind=ModelFailure.REFUSED):
            return failed(FailureReason.REFUSED)
        case ModelFailed(kind=ModelFailure.TOO_LONG):
            return failed(FailureReason.TOO_LONG)
        case ModelFailed(kind=ModelFailure.QUOTA):
            return failed(FailureReason.BUDGET)
        case ModelFailed(kind=kind):
            return failed(FailureReason.MODEL, _MODEL_TEXTS.get(kind, ""))
        case BudgetExceeded():
            return failed(FailureReason.BUDGET)
        case DeadlineExceeded():
            return failed(FailureReason.DEADLINE)
        case SandboxUnavailable() | SandboxLost():
            return failed(FailureReason.SANDBOX)
        case InvalidInput():
            return failed(FailureReason.INVALID)
        case _:
            return failed(FailureReason.MODEL)


def failed(reason: FailureReason, text: str = "") -> Failed:
    return Failed(reason, text or _TEXTS[reason])
