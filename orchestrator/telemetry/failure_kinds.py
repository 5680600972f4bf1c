"""The kind of a failure, from what an event says of it: few words, fit for a label or an attribute."""

from __future__ import annotations

import re

from orchestrator.errors import ModelFailure

# "any other": the OpenTelemetry conventions' word for `error.type`.
OTHER = "_OTHER"

_FAILED = re.compile(r"^model .{0,300}? failed \((?P<kind>[a-z ]{1,40})\)", re.DOTALL)
_KINDS = {kind.value.replace("_", " "): kind.value for kind in ModelFailure}
_VALUES = frozenset(kind.value for kind in ModelFailure)


def of_model_call(error: str) -> str:
    """The `ModelFailure` of a `ModelCallEnded.error`; `budget` when the run's limit forbade the call."""
    if match := _FAILED.match(error):
        return _KINDS.get(match["kind"], OTHER)
    return "budget" if error.startswith("the run's limit ") else OTHER


def of_retry(reason: str) -> str:
    """The `ModelFailure` of a `ModelRetried.reason`, which begins with it."""
    kind = reason.partition(":")[0]
    return kind if kind in _VALUES else OTHER
