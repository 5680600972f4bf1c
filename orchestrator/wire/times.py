"""Seconds to Timestamp and Duration, and back. A whole of microseconds, which is what a float's seconds can hold."""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.errors import InvalidInput

_MICRO = 1_000_000
MOST_SECONDS = 315_576_000_000.0  # of a Duration, by its definition: 10,000 years
_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0  # of a Timestamp: the years 1 to 9999


def write_time(message: Timestamp, seconds: float | None) -> None:
    """None leaves it unset, and so does what is no number. Never raises: one odd row must not spoil a whole page."""
    if seconds is not None and not math.isnan(seconds):
        message.FromMicroseconds(round(min(max(seconds, _FIRST), _LAST) * _MICRO))


def time_of(message: Timestamp) -> float:
    return message.seconds + message.nanos / 1e9


def write_duration(message: Duration, seconds: float) -> None:
    """Raises `InvalidInput` for what is no number of seconds."""
    if not math.isfinite(seconds) or abs(seconds) > MOST_SECONDS:
        raise InvalidInput("seconds", f"must be a number below {MOST_SECONDS:.0f}; it is {seconds}.")
    message.FromMicroseconds(round(seconds * _MICRO))


def clamp_duration(seconds: float) -> float:
    """The nearest that `write_duration` takes."""
    return 0.0 if math.isnan(seconds) else min(max(seconds, -MOST_SECONDS), MOST_SECONDS)


def seconds_of(message: Duration) -> float:
    return message.seconds + message.nanos / 1e9
