"""What the server was asked, kept so that a test can look at it and wait for it.

`wait_for` is driven by events: a predicate is evaluated when a request starts or ends, and at no other time,
so a test needs neither sleeping nor polling.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class RequestState(Enum):
    """Where one request stands."""

    IN_FLIGHT = "in_flight"
    ANSWERED = "answered"  # a whole response was given, whatever its status
    BROKEN = "broken"  # the server closed the connection on purpose
    CANCELLED = "cancelled"  # the client left, or the server was closed, before there was a whole response


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One chat completion request, accepted or not.

    ordinal      0 for the first since the start or the last reset
    body         the decoded JSON, or the text of a body that is not JSON
    headers      names in lower case; kept out of the repr, since they carry the key
    status       the HTTP status once there is one
    started_at, ended_at    seconds of `time.monotonic`
    """

    ordinal: int
    body: Any
    headers: Mapping[str, str] = field(repr=False)
    started_at: float
    state: RequestState = RequestState.IN_FLIGHT
    status: int | None = None
    ended_at: float | None = None

    @property
    def model(self) -> str:
        """The model as the client named it, fault suffix included; empty in a body that names none."""
        model = self.body.get("model", "") if isinstance(self.body, dict) else ""
        return model if isinstance(model, str) else ""


@dataclass(frozen=True, slots=True)
class _Entry:
    generation: int
    ordinal: int


class RequestLog:
    """The requests of one server, newest last, with a count of those in flight.

    Only the newest `limit` requests are kept, so that a container may serve for days; the counts cover all.
    """

    def __init__(self, limit: int = 10_000) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1 recorded request, not {limit}")
        self._limit = limit
        self._records: dict[int, RecordedRequest] = {}
        self._attempts: dict[str, int] = {}
        self._waiters: list[tuple[Callable[[RequestLog], bool], asyncio.Future[None]]] = []
        self._generation = 0
        self._started = 0
        self._in_flight = 0
        self._max_in_flight = 0

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        return tuple(self._records.values())

    @property
    def started(self) -> int:
        """Requests since the start or the last reset, ended or not."""
        return self._started

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def max_in_flight(self) -> int:
        """The most requests that were in flight at one time since the start or the last reset."""
        return self._max_in_flight

    def count(self, state: RequestState) -> int:
        """How many of the kept requests are in this state."""
        return sum(record.state is state for record in self._records.values())

    def begin(self, body: Any, headers: Mapping[str, str]) -> _Entry:
        entry = _Entry(self._generation, self._started)
        self._records[entry.ordinal] = RecordedRequest(entry.ordinal, body, headers, time.monotonic())
        if len(self._records) > self._limit:
            del self._records[next(iter(self._records))]
        self._started += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        self._notify()
        return entry

    def end(self, entry: _Entry, state: RequestState, status: int | None = None) -> None:
        self._in_flight -= 1
        if entry.generation == self._generation and (record := self._records.get(entry.ordinal)):
            self._records[entry.ordinal] = replace(record, state=state, status=status, ended_at=time.monotonic())
        self._notify()

    def next_attempt(self, digest: str) -> int:
        """The number of this request among those with the same prompt: 1, 2, ..."""
        attempt = self._attempts.pop(digest, 0) + 1
        self._attempts[digest] = attempt
        # Re-inserted above, so the first key is the prompt that was asked longest ago.
        if len(self._attempts) > self._limit:
            del self._attempts[next(iter(self._attempts))]
        return attempt

    def reset(self) -> None:
        """Forget all requests and attempts. Those still in flight go on and stay counted in `in_flight`."""
        self._generation += 1
        self._records.clear()
        self._attempts.clear()
        self._started = 0
        self._max_in_flight = self._in_flight
        self._notify()

    async def wait_for(self, predicate: "Callable[[RequestLog], bool]") -> None:
        """Return once the predicate holds for this log. Give it a limit with `asyncio.timeout`.

        Raises whatever the predicate raises.
        """
        if predicate(self):
            return
        future = asyncio.get_running_loop().create_future()
        self._waiters.append((predicate, future))
        await future

    def _notify(self) -> None:
        if not self._waiters:
            return
        for predicate, future in self._waiters:
            if future.done():
                continue
            try:
                if predicate(self):
                    future.set_result(None)
            except Exception as error:
                future.set_exception(error)
        self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]
