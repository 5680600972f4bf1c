"""Questions in the worker, before and after the wire: whose turn it is, what is put back, and what ends with a cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.guest_modules import worker_asks, worker_calls


class Broken(BaseException):
    """What a signal handler raises."""


class FakeConnection:
    """Takes calls and does nothing with them."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.cancelled: list[Any] = []
        self.is_sending_here = False
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def start(self, call: Any, block: bytes, body: bytes) -> None:
        self.before()
        self.started.append(call)
        self.after()

    def has(self, call: Any) -> bool:
        return call in self.started

    def cancel(self, call: Any) -> None:
        self.cancelled.append(call)

    def cancel_all(self) -> None:
        self.cancelled += self.started

    def read(self) -> None:
        raise AssertionError("nobody waits here")


class NoInterrupts:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
def asks(connection: FakeConnection) -> Any:
    any_connection: Any = connection
    interrupts: Any = NoInterrupts()
    made = worker_asks.Asks(any_connection, interrupts)
    made.begin_cell()
    return made


def ask(replies: list[Any], size: int = 1) -> Any:
    question = worker_calls.Question(b"x" * size, "", b"")
    return worker_asks.Ask([question], 1, replies.append, stop_at_failure=False, recursive=None)


def end(call: Any) -> None:
    call.headers[b"grpc-status"] = b"3"
    call.ended(call)


def raise_broken() -> None:
    raise Broken


def test_an_ask_whose_sending_is_broken_off_in_another_thread_is_sent_by_the_next_who_sends(
    connection: FakeConnection, asks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_asks, "MAX_IN_FLIGHT", 1)
    first, second = list[Any](), list[Any]()
    asks.start(ask(first))
    asks.start(ask(second))
    connection.before = raise_broken
    with pytest.raises(Broken):
        end(connection.started[0])  # by who reads
    assert len(first) == 1
    connection.before = lambda: None
    asks.cancel(ask([]))  # as each does whose wait was broken off
    end(connection.started[1])
    assert len(second) == 1


def test_an_ask_that_was_sent_before_it_was_broken_off_is_not_sent_twice(connection: FakeConnection, asks: Any) -> None:
    replies: list[Any] = []
    one = ask(replies)
    connection.after = raise_broken
    with pytest.raises(Broken):
        asks.start(one)
    connection.after = lambda: None
    asks.cancel(one)
    assert len(connection.started) == 1
    assert connection.cancelled == connection.started


def test_an_end_that_is_told_again_lets_the_next_go(
    connection: FakeConnection, asks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_asks, "MAX_IN_FLIGHT", 1)
    for _ in range(2):
        asks.start(ask([]))
    send = asks._send_what_fits
    monkeypatch.setattr(asks, "_send_what_fits", raise_broken)
    with pytest.raises(Broken):
        end(connection.started[0])
    monkeypatch.setattr(asks, "_send_what_fits", send)
    end(connection.started[0])
    assert len(connection.started) == 2


def test_what_is_just_being_sent_when_its_cell_ends_is_given_up(connection: FakeConnection, asks: Any) -> None:
    replies: list[Any] = []
    connection.before = asks.end_cell
    asks.start(ask(replies))
    assert replies == [worker_asks.ENDED]
    assert connection.cancelled == connection.started


def test_the_next_cell_has_all_of_the_room_again(
    connection: FakeConnection, asks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_asks, "MAX_BYTES_IN_FLIGHT", 1_000)
    for _ in range(3):
        asks.start(ask([], size=600))
    assert len(connection.started) == 1
    asks.end_cell()
    asks.begin_cell()
    asks.start(ask([], size=300))
    asks.start(ask([], size=600))
    assert len(connection.started) == 3


def test_outside_of_a_cell_nothing_is_sent(connection: FakeConnection, asks: Any) -> None:
    asks.end_cell()
    replies: list[Any] = []
    asks.start(ask(replies))
    assert replies == [worker_asks.ENDED]
    assert connection.started == []


def test_code_that_breaks_into_its_own_threads_sending_is_told_so(connection: FakeConnection, asks: Any) -> None:
    connection.is_sending_here = True
    one = ask([])
    with pytest.raises(RuntimeError, match="cannot ask while its thread sends"):
        asks.start(one)
    asks.cancel(one)
    assert connection.started == connection.cancelled == []
