"""The worker's HTTP/2: held against another implementation, and broken off at each of its lines, as a signal may."""

from __future__ import annotations

import linecache
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import pytest

from tests.unit.asks_server import Asked, AsksServer, GivenUp
from tests.unit.guest_modules import guest_messages, worker_calls, worker_http2

LARGE = "é" * 100_000  # more than a window, and more than a frame


class Broken(BaseException):
    """What a signal handler raises."""


class Gone(Exception):
    """The connection is of no more use."""


class NoInterrupts:
    """Shields nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def let_through(self, block: Callable[..., object], *arguments: Any) -> None:
        block(*arguments)


def gone() -> NoReturn:
    raise Gone


class Ends:
    """A connection and its other end, both in this thread."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.server = AsksServer(theirs)
        self.socket = ours
        interrupts: Any = NoInterrupts()
        self.connection = worker_http2.Connection(ours, interrupts, gone)
        self.replies: list[Any] = []

    def close(self) -> None:
        self.server.close()
        self.socket.close()

    def call(self) -> Any:
        return worker_http2.Call(lambda call: self.replies.append(worker_calls.reply_of(call, 1)))

    def start(self, call: Any, prompt: str) -> None:
        question = worker_calls.Question(prompt.encode(), "", b"")
        self.connection.start(call, worker_calls.HEADERS, worker_calls.body_of([question], 1, False, None))

    def serve(self) -> list[int]:
        """Answers what has come; returns the calls that were given up."""
        self.server.receive()
        given_up = []
        while self.server.events:
            match self.server.events.popleft():
                case Asked() as asked:
                    asked.answer(("", asked.prompt))
                case GivenUp(stream):
                    given_up.append(stream)
        return given_up

    def ask(self, prompt: str, call: Any = None) -> None:
        """To the end of the call; again with the same call goes on with it."""
        call = call or self.call()
        if not call.number:
            self.start(call, prompt)
        self.finish(call)

    def finish(self, call: Any) -> None:
        while call.headers.get(b"grpc-status") is None and call.error is None:
            self.serve()
            self.connection.read()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def answered(text: str) -> Any:
    return worker_calls.Answered([("", text)])


def broken_at(count: int, do: Callable[[], object]) -> bool:
    """Runs it and raises at the so-manieth line of the connection's; returns whether there were as many."""
    left = count

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != worker_http2.__file__:
            return None
        # Python runs handlers at calls. It has none at the end of a block whose lock it lets go, though a line begins.
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with"
        ):
            left -= 1
            if not left:
                raise Broken
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        do()
    except Broken:
        return True
    finally:
        sys.settrace(before)
    return False


def test_questions_of_any_size_come_whole_and_so_do_answers(ends: Ends) -> None:
    for prompt in ("", "q", "é" * 40_000, LARGE, "x" * 5_000_000):
        ends.ask(prompt)
        assert ends.replies.pop() == answered(prompt)
    assert ends.replies == []


def test_small_questions_pass_a_large_one_that_waits_for_its_window(ends: Ends) -> None:
    ends.ask("first")  # whose answer brings the connection's window
    ends.server.hold()
    large, small = ends.call(), ends.call()
    ends.start(large, LARGE)
    ends.start(small, "small")
    ends.finish(small)
    assert [reply for reply in ends.replies if reply == answered(LARGE)] == []
    assert ends.replies[-1] == answered("small")
    ends.server.release()
    ends.finish(large)
    assert ends.replies[-1] == answered(LARGE)


def test_a_call_that_is_given_up_is_reset_once_and_its_answer_is_nobodys(ends: Ends) -> None:
    call = ends.call()
    ends.start(call, "q")
    ends.connection.cancel(call)
    ends.connection.cancel(call)
    assert ends.serve() == [call.number]
    ends.ask("next")
    assert ends.replies == [answered("next")]


def test_one_that_is_given_up_half_sent_sends_no_more(ends: Ends) -> None:
    ends.server.hold()
    call = ends.call()
    ends.start(call, LARGE)
    ends.connection.cancel(call)
    assert ends.serve() == [call.number]
    ends.server.release()
    ends.ask("next")
    assert ends.replies == [answered("next")]


def test_when_all_are_given_up_whoever_reads_hears_of_it(ends: Ends) -> None:
    ends.ask("first")
    calls = [ends.call() for _ in range(3)]
    for call in calls:
        ends.start(call, "q")
    ends.connection.cancel_all()
    assert ends.serve() == [call.number for call in calls]
    ends.connection.read()
    ends.connection.cancel_all()
    ends.serve()
    ends.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends.connection.read()


@pytest.mark.parametrize(
    "frames",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00",  # a window's update that is too short
        b"\x00\x00\x01\x05\x04\x00\x00\x00\x01\x00",  # a push
        b"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x88",  # headers that go on
        b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\xff",  # headers that end in the middle
        b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\x3f",  # a table, where none was offered
        b"\x00\x00\x01\x00\x08\x00\x00\x00\x01\x05",  # more padding than there is
        b"",
    ],
)
def test_what_is_no_http2_and_an_end_are_the_end_of_the_connection(ends: Ends, frames: bytes) -> None:
    call = ends.call()
    ends.start(call, "q")
    ends.server.send_bytes(frames)
    ends.server.hang_up()
    with pytest.raises(Gone):
        ends.finish(call)


def test_a_socket_that_the_code_has_closed_is_the_end_of_the_connection(ends: Ends) -> None:
    ends.socket.close()
    with pytest.raises(Gone):
        ends.start(ends.call(), "q")


@pytest.mark.parametrize("prompt", ["q", LARGE])
def test_a_call_that_is_broken_off_anywhere_and_given_up_leaves_the_connection_as_it_was(prompt: str) -> None:
    count = 0
    broken = True
    while broken:
        count += 1
        ends = Ends()
        call = ends.call()
        broken = broken_at(count, lambda ends=ends, call=call: ends.ask(prompt, call))  # type: ignore[misc]
        ends.connection.cancel(call)
        ends.replies.clear()
        ends.ask(LARGE)
        ends.ask("next")
        assert ends.replies == [answered(LARGE), answered("next")], count
        ends.close()
    assert count > 50


@pytest.mark.parametrize("prompt", ["q", LARGE])
def test_a_read_that_is_broken_off_anywhere_is_gone_on_with(prompt: str) -> None:
    count = 0
    broken = True
    while broken:
        count += 1
        ends = Ends()
        call = ends.call()
        ends.start(call, prompt)
        broken = broken_at(count, lambda ends=ends, call=call: ends.finish(call))  # type: ignore[misc]
        while not ends.replies:
            ends.serve()
            ends.connection.read()
        assert set(map(repr, ends.replies)) == {repr(answered(prompt))}, count
        ends.ask("next")
        assert ends.replies[-1] == answered("next"), count
        ends.close()
    assert count > 50


def test_giving_up_that_is_broken_off_anywhere_leaves_the_connection_as_it_was() -> None:
    count = 0
    broken = True
    while broken:
        count += 1
        ends = Ends()
        calls = [ends.call() for _ in range(2)]
        for call in calls:
            ends.start(call, LARGE)
        broken = broken_at(count, ends.connection.cancel_all)
        ends.serve()
        ends.ask("next")
        assert ends.replies[-1] == answered("next"), count
        ends.close()
    assert count > 20


def test_a_reason_for_each_question_reaches_the_code(ends: Ends) -> None:
    failure = guest_messages.Failure(reason=guest_messages.FAILURE_REASON_BUDGET, message="no €")
    slots = [guest_messages.Slot(text="ü"), guest_messages.Slot(failure=failure), guest_messages.Slot()]
    call = worker_http2.Call(lambda call: ends.replies.append(worker_calls.reply_of(call, 3)))
    ends.start(call, "q")
    ends.server.receive()
    asked = ends.server.events.popleft()
    assert isinstance(asked, Asked)
    asked.answer_with(guest_messages.AskResponse(slots=slots).encode())
    while not ends.replies:
        ends.connection.read()
    assert ends.replies == [worker_calls.Answered([("", "ü"), ("budget", "no €"), ("unspecified", "")])]
