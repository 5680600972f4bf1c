"""The worker's HTTP/2: held against another implementation, and broken off at each of its lines, as a signal may."""

from __future__ import annotations

import linecache
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import pytest

from tests.unit.asks_server import (
    CONNECTION_WINDOW,
    MAX_FRAME,
    RESOURCE_EXHAUSTED,
    STREAM_WINDOW,
    Asked,
    AsksServer,
    GivenUp,
)
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

    def __init__(self, *, stream_window: int = STREAM_WINDOW, max_frame: int = MAX_FRAME) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.server = AsksServer(theirs, stream_window=stream_window, max_frame=max_frame)
        self.socket = ours
        interrupts: Any = NoInterrupts()
        self.connection = worker_http2.Connection(ours, interrupts, gone)
        self.replies: list[Any] = []

    def close(self) -> None:
        self.server.close()
        self.socket.close()

    def settle(self) -> None:
        """Until each end knows the other's settings."""
        while not self.server.settled:
            self.connection.read()
            self.serve()

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


def goaway(last: int) -> bytes:
    """A frame that says that no call after this one is looked at."""
    return b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4, "big") + bytes(4)


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
    ends.socket.setblocking(False)
    ends.connection.read()
    with pytest.raises(BlockingIOError):
        ends.connection.read()
    ends.connection.cancel_all()  # also of those that another thread was just about to send
    ends.serve()
    ends.connection.read()


def test_one_that_is_refused_half_sent_sends_no_more(ends: Ends) -> None:
    ends.server.hold()
    call = ends.call()
    ends.start(call, LARGE)
    ends.serve()
    sent = list(ends.server.frames[call.number])
    ends.server.refuse(call.number, RESOURCE_EXHAUSTED, "full")
    ends.server.release()  # so that there is room for the rest, which nobody wants
    ends.finish(call)
    assert ends.replies.pop() == worker_calls.Refused("invalid", "full")
    ends.ask("next")
    assert ends.replies == [answered("next")]
    assert ends.server.left_off == [call.number]  # that it is no failure is said too (RFC 9113, section 8.1)
    assert ends.server.frames[call.number] == sent


def test_one_that_is_reset_half_sent_sends_no_more_and_no_reset_of_its_own(ends: Ends) -> None:
    ends.ask("first")
    ends.server.hold()
    call = ends.call()
    ends.start(call, LARGE)
    ends.serve()
    ends.server.send_bytes(b"\0\0\4\3\0" + call.number.to_bytes(4) + bytes([0, 0, 0, 8]))
    sent = list(ends.connection._sent)
    ends.finish(call)
    assert ends.replies == [answered("first"), worker_calls.Refused("ended", "the call was reset")]
    assert ends.connection._sent == sent
    ends.server.release()
    ends.ask("next")
    assert ends.replies[-1] == answered("next")


def test_a_refusal_of_one_half_sent_that_is_broken_off_anywhere_is_gone_on_with() -> None:
    count = 0
    broken = True
    while broken:
        count += 1
        ends = Ends()
        ends.server.hold()
        call = ends.call()
        ends.start(call, LARGE)
        ends.serve()
        ends.server.refuse(call.number, RESOURCE_EXHAUSTED, "full")
        ends.server.release()
        broken = broken_at(count, lambda ends=ends, call=call: ends.finish(call))  # type: ignore[misc]
        ends.ask(LARGE)
        assert ends.replies.pop() == answered(LARGE), count
        assert set(map(repr, ends.replies)) == {repr(worker_calls.Refused("invalid", "full"))}, count
        assert ends.server.left_off == [call.number], count
        ends.close()
    assert count > 50


# The other end of these breaks the connection off, with an error here, when more comes than it has allowed.


@pytest.mark.parametrize("window", [1, 1000, 100_000])
def test_a_question_keeps_to_a_window_of_any_size(window: int) -> None:
    ends = Ends(stream_window=window)
    ends.settle()
    for prompt in ("x" * 2000, LARGE[: 100 * window]):
        ends.ask(prompt)
        assert ends.replies.pop() == answered(prompt)
    ends.server.hold()
    call = ends.call()
    ends.start(call, LARGE)
    ends.serve()
    assert sum(ends.server.frames[call.number]) == window
    ends.close()


def test_a_window_that_grows_lets_a_question_go_on_that_waits_for_it() -> None:
    ends = Ends(stream_window=1000)
    ends.settle()
    ends.server.hold()  # nothing else brings a window
    call = ends.call()
    ends.start(call, LARGE)
    ends.serve()
    assert ends.server.frames[call.number] == [1000]
    ends.server.resize(1 << 18)
    ends.finish(call)
    assert ends.replies == [answered(LARGE)]
    ends.close()


def test_a_window_that_shrinks_below_what_was_sent_is_waited_for(ends: Ends) -> None:
    ends.settle()
    ends.server.hold()
    call = ends.call()
    ends.start(call, LARGE)
    ends.serve()
    ends.server.resize(1000)
    ends.settle()
    assert sum(ends.server.frames[call.number]) == STREAM_WINDOW
    ends.server.release()
    ends.finish(call)
    assert ends.replies == [answered(LARGE)]


@pytest.mark.parametrize(("most", "largest"), [(16_384, 16_384), (20_000, 20_000), (1 << 20, worker_http2.CHUNK)])
def test_frames_are_as_large_as_they_may_be_and_leave_room_for_other_calls(most: int, largest: int) -> None:
    ends = Ends(stream_window=1 << 20, max_frame=most)
    ends.settle()
    for prompt in ("x" * (most + 1), LARGE):
        call = ends.call()
        ends.ask(prompt, call)
        assert ends.replies.pop() == answered(prompt)
        *whole, rest = ends.server.frames[call.number]
        assert set(whole) == {largest}
        assert 0 < rest <= largest
    ends.close()


def test_frames_are_of_the_protocols_own_size_until_the_other_end_has_named_another(ends: Ends) -> None:
    for prompt in ("x" * 40_000, LARGE):
        ends.start(ends.call(), prompt)
    ends.server.receive()
    assert max(max(sizes) for sizes in ends.server.frames.values()) == 16_384


def test_small_questions_keep_to_the_connections_window_too(ends: Ends) -> None:
    ends.settle()
    ends.server.hold()
    prompts = [f"{number:02}" * 30_000 for number in range(30)]  # each alone fits into any window
    calls = [ends.call() for _ in prompts]
    for call, prompt in zip(calls, prompts, strict=True):
        ends.start(call, prompt)
        ends.serve()  # else the socket would fill up
    assert sum(sum(sizes) for sizes in ends.server.frames.values()) == CONNECTION_WINDOW
    ends.server.release()
    for call in calls:
        ends.finish(call)
    assert sorted(map(repr, ends.replies)) == [repr(answered(prompt)) for prompt in prompts]


def test_calls_that_the_other_end_will_not_look_at_any_more_have_ended(ends: Ends) -> None:
    calls = [ends.call() for _ in range(3)]
    for call in calls:
        ends.start(call, "q")
    lost = worker_calls.Refused("ended", "the call was reset")
    ends.server.send_bytes(goaway(calls[0].number))
    while len(ends.replies) < 2:
        ends.connection.read()
    assert ends.replies == [lost, lost]
    assert [call.error is None for call in calls] == [True, False, False]
    ends.server.send_bytes(goaway(0))
    while len(ends.replies) < 3:
        ends.connection.read()
    assert ends.replies == [lost, lost, lost]
    ends.connection.cancel_all()  # there is nothing left of them
    assert ends.serve() == []


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
