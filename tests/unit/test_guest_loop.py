"""The agent's event loop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.guest_modules import agent_loop


def test_timers_run_in_their_order_and_a_cancelled_one_never() -> None:
    loop, seen = agent_loop.Loop(), list[str]()
    loop.call_later(0.002, seen.append, "second")
    loop.call_later(0.001, seen.append, "first")
    loop.call_later(0.0015, seen.append, "never").cancel()
    loop.call_later(0.003, loop.stop)
    loop.run()
    assert seen == ["first", "second"]


def test_a_timer_that_another_one_cancels_in_the_same_turn_does_not_run() -> None:
    loop, seen = agent_loop.Loop(), list[str]()
    loop.call_later(0, lambda: late.cancel())
    late = loop.call_later(0, seen.append, "late")
    loop.call_later(0, loop.stop)
    loop.run()
    assert seen == []


def test_timers_that_were_cancelled_do_not_fill_memory() -> None:
    loop, seen = agent_loop.Loop(), list[int]()
    for number in range(50):
        loop.call_later(number / 1e6, seen.append, number)
    for _ in range(10_000):
        loop.call_later(1000.0, seen.append, -1).cancel()
    assert len(loop._timers) <= 2 * (50 + agent_loop.MOST_CANCELLED)
    loop.call_later(0.001, loop.stop)
    loop.run()
    assert seen == list(range(50))


def test_a_reader_that_another_one_removes_in_the_same_turn_is_not_called() -> None:
    loop, seen = agent_loop.Loop(), list[str]()
    pairs = [socket.socketpair() for _ in range(2)]
    ours, theirs = zip(*pairs, strict=True)

    def one_of(mine: socket.socket, others: socket.socket) -> None:
        seen.append("called")
        loop.remove_reader(others)
        loop.stop()

    loop.add_reader(ours[0], lambda: one_of(ours[0], ours[1]))
    loop.add_reader(ours[1], lambda: one_of(ours[1], ours[0]))
    for one in theirs:
        one.send(b"x")
    loop.run()
    assert seen == ["called"]
    for one in (*ours, *theirs):
        one.close()


def test_reading_and_writing_of_one_socket_are_watched_apart() -> None:
    loop, seen = agent_loop.Loop(), list[str]()
    ours, theirs = socket.socketpair()

    def writable() -> None:
        seen.append("writable")
        loop.remove_writer(ours)
        theirs.send(b"x")

    def readable() -> None:
        seen.append(ours.recv(1).decode())
        loop.remove_reader(ours)
        loop.remove_reader(ours)  # once more harms nothing
        loop.stop()

    loop.add_reader(ours, readable)
    loop.add_writer(ours, writable)
    loop.run()
    assert seen == ["writable", "x"]
    ours.close()
    theirs.close()


def test_what_a_callback_raises_comes_out() -> None:
    loop = agent_loop.Loop()
    loop.call_later(0, int, "no number")
    with pytest.raises(ValueError, match="no number"):
        loop.run()


def test_a_signal_wakes_the_loop() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(agent_loop.__file__).parent)!r})\n"
        "import os, signal\nfrom agent_loop import Loop\nloop = Loop()\n"
        "def ended():\n    print(os.waitpid(-1, 0)[1]); loop.stop()\n"
        "loop.add_signal_handler(signal.SIGCHLD, ended)\n"
        "if os.fork() == 0: os._exit(3)\n"
        "loop.run()"
    )
    said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert os.waitstatus_to_exitcode(int(said.stdout)) == 3
    assert signal.getsignal(signal.SIGCHLD) is not None
