"""Parts of the guest that need no process: frames, the clock, settings, what a death was of, what a worker reports."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.guest_modules import (
    agent_clock,
    agent_link,
    agent_loop,
    agent_processes,
    agent_settings,
    agent_worker,
    guest_frames,
    worker_describe,
    worker_tracebacks,
)


def test_frames_survive_any_division_of_the_stream() -> None:
    frames: list[tuple[dict[str, Any], bytes]] = [
        ({"op": "a", "n": 1}, b"raw\0"),
        ({"op": "b"}, b""),
        ({"op": "c", "é": "\ud800"}, b"x" * 1000),
    ]
    stream = b"".join(guest_frames.encode(message, data) for message, data in frames)
    for step in (1, 7, 1000, len(stream)):
        decoder = guest_frames.FrameDecoder()
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        assert [frame for piece in pieces for frame in decoder.feed(piece)] == frames
    for at in range(len(stream)):
        decoder = guest_frames.FrameDecoder()
        first, second = memoryview(stream)[:at], memoryview(stream)[at:]
        assert [frame for piece in (first, second, stream) for frame in decoder.feed(piece)] == frames * 2


def test_a_message_may_be_given_as_its_json() -> None:
    message = {"op": "cell", "cell": 3}
    assert guest_frames.encode('{"op":"cell","cell":3}', b"x", b"y") == guest_frames.encode(message, b"xy")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 8,
        b"\0" * 8,
        guest_frames.HEADER.pack(1 << 21, 0),
        guest_frames.HEADER.pack(2, (66 << 20) + 1),
        guest_frames.HEADER.pack(2, 0) + b"[]",
        guest_frames.HEADER.pack(2, 0) + b"{}",
        guest_frames.HEADER.pack(9, 0) + b'{"op": 1}',
        guest_frames.HEADER.pack(100_000, 0) + b"[" * 100_000,
        guest_frames.HEADER.pack(8, 0) + b'{"op":"\xff',
        guest_frames.HEADER.pack(11, 0) + b'{"op":"a"} ',
        guest_frames.HEADER.pack(12, 0) + b'{"op":"a"}{}',
        guest_frames.HEADER.pack(10_000, 0) + b"1" * 10_000,
    ],
)
def test_what_is_no_frame_is_refused_before_it_is_stored(garbage: bytes) -> None:
    with pytest.raises(guest_frames.FrameError):
        list(guest_frames.FrameDecoder().feed(garbage))


@pytest.mark.parametrize("sizes", [[1], [3], [-1, 3], [True, 1], ["2"], [1.0, 1.0]])
def test_sizes_must_divide_the_data(sizes: list[Any]) -> None:
    with pytest.raises(guest_frames.FrameError):
        guest_frames.split(b"ab", sizes)


REPORT: dict[str, Any] = {"op": "ended", "cell": 1, "status": "ok", "error": None, "final": None, "variables": []}


@pytest.mark.parametrize(
    "change",
    [
        {"cell": -1},
        {"cell": True},
        {"status": "interrupted"},
        {"status": "error"},
        {"error": [1, 1]},
        {"final": [0]},
        {"final": [0, "str", -1]},
        {"final": [0, "x" * 500, 0]},
        {"variables": [["a", "b"]]},
        {"variables": [["a", 3, ""]]},
        {"variables": 5},
        {"variables": [["x" * 401, "", ""]]},
        {"variables": [["\ud800", "", ""]]},
        {"final": [0, "\ud800", 0]},
    ],
)
def test_a_malformed_report_is_refused(change: dict[str, Any]) -> None:
    agent_worker.read_ended(REPORT, b"")
    with pytest.raises((guest_frames.FrameError, KeyError, TypeError, ValueError)):
        agent_worker.read_ended(REPORT | change, b"")


class Recorder:
    """Notes what a link or a clock does."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.stop: Callable[[], None] = lambda: None

    def on_message(self, message: dict[str, Any], data: bytes) -> None:
        self.seen.append((message["op"], data))

    def on_broken(self, reason: str, ended: bool) -> None:
        self.seen.append(("broken", ended))
        self.stop()


def test_a_worker_that_never_reads_breaks_the_link_in_place_of_filling_memory() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        recorder = Recorder()
        link = agent_link.Link(agent_loop.Loop(), ours, recorder)
        for _ in range(6):
            link.send({"op": "x"}, b"y" * (32 << 20))
        assert recorder.seen == [("broken", False)]
        link.close()


def test_a_link_that_is_closed_in_order_says_so() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        recorder = Recorder()
        loop = agent_loop.Loop()
        recorder.stop = loop.stop
        agent_link.Link(loop, ours, recorder)
        theirs.send(guest_frames.encode({"op": "hi"}, b"d"))
        theirs.close()
        loop.run()
        assert recorder.seen == [("hi", b"d"), ("broken", True)]


class FakeLoop:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Any, tuple[Any, ...], Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Any, *arguments: Any) -> Any:
        class Handle:
            cancelled = False

            def cancel(self) -> None:
                self.cancelled = True

        handle = Handle()
        self.timers.append((self.now + delay, call, arguments, handle))
        return handle

    @property
    def live(self) -> list[tuple[float, Any, tuple[Any, ...], Any]]:
        return [timer for timer in self.timers if not timer[3].cancelled]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.live if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1](*first[2])
        self.now = end


class FakeTimes:
    """Processes that have been busy since the loop's time 0, for these parts of it; others began with the worker."""

    def __init__(self, loop: FakeLoop, worker: float = 0.0, others: float = 0.0) -> None:
        self._loop = loop
        self._worker, self._others = worker, others

    def worker(self) -> float:
        return self._loop.now * self._worker

    def everyone(self) -> float:
        return self._loop.now * (self._worker + self._others)


class FakeHost:
    """Knows for how long the cell has waited, and answers at once when it is asked."""

    def __init__(self, loop: FakeLoop) -> None:
        self._loop = loop
        self._waited = 0.0
        self._since: float | None = None
        self.clock: Any = None
        self.asked = 0

    def waits(self, whether: bool) -> None:
        self._waited = self.waited
        self._since = self._loop.now if whether else None

    @property
    def waited(self) -> float:
        return self._waited + (self._loop.now - self._since if self._since is not None else 0.0)

    def answer(self) -> None:
        self.asked += 1
        self.clock.told(self.waited, self._since is not None)


def clock(limit_s: float, grace_s: float, **busy: float) -> tuple[FakeLoop, Any, FakeHost, list[str]]:
    loop, seen = FakeLoop(), list[str]()
    host = FakeHost(loop)
    any_loop: Any = loop
    times = FakeTimes(loop, **busy)
    host.clock = agent_clock.CellClock(
        any_loop, limit_s, grace_s, times, host.answer, lambda: seen.append("interrupt"), seen.append
    )
    return loop, host.clock, host, seen


def test_the_clock_counts_running_time_only_and_climbs_the_ladder() -> None:
    loop, cell, host, seen = clock(10, 2)
    loop.advance(6)
    host.waits(True)
    loop.advance(1000)
    host.waits(False)
    loop.advance(3.9)
    assert seen == []
    loop.advance(0.1)
    assert seen == ["interrupt"]
    cell.stop("interrupted")  # too late: the first cause counts
    loop.advance(1.9)
    assert seen == ["interrupt"]
    loop.advance(0.1)
    assert seen == ["interrupt", "timed_out"]
    assert cell.finish() == pytest.approx(1012)


def test_a_cell_that_ends_within_its_limit_costs_the_host_no_word() -> None:
    loop, cell, host, _ = clock(10, 2)
    loop.advance(9.9)
    cell.finish()
    loop.advance(100)
    assert host.asked == 0


def test_what_the_host_says_unasked_or_late_changes_nothing() -> None:
    loop, cell, host, seen = clock(10, 2)
    cell.told(0.0, False)
    host.clock = FakeClock()  # who never gets the answer: it is on its way
    loop.advance(20)
    assert seen == []
    cell.stop("interrupted")
    cell.told(0.0, False)
    loop.advance(2)
    assert seen == ["interrupt", "interrupted"]


def test_what_the_host_says_after_the_stop_does_not_outlive_the_cell() -> None:
    loop, cell, host, seen = clock(10, 2)
    host.clock = FakeClock()
    loop.advance(10)  # it has been asked, and answers later
    cell.stop("interrupted")
    cell.told(5.0, True)
    assert len(loop.live) == 1
    cell.finish()
    assert loop.live == []  # the next cell's worker would be the one to be killed
    loop.advance(100)
    assert seen == ["interrupt"]


def test_what_the_host_says_unasked_sets_no_second_timer() -> None:
    loop, cell, host, _ = clock(10, 2)
    cell.told(0.0, True)
    assert len(loop.live) == 1
    host.waits(True)
    loop.advance(10)
    assert host.asked == 1
    for _ in range(3):
        cell.told(10.0, True)
    assert len(loop.live) == 1
    cell.finish()
    assert loop.live == []


class FakeClock:
    """Hears and does nothing."""

    def told(self, waited_s: float, waits: bool) -> None:
        pass


def test_a_worker_that_spins_while_a_question_is_out_is_charged_for_it() -> None:
    loop, _cell, host, seen = clock(10, 2, worker=1.0)
    loop.advance(1)
    host.waits(True)
    loop.advance(8.9)
    assert seen == []
    loop.advance(0.2)
    assert seen == ["interrupt"]


def test_many_processors_end_a_cell_no_sooner_than_its_limit() -> None:
    loop, _cell, host, seen = clock(10, 2, worker=8.0)
    host.waits(True)
    loop.advance(9.9)
    assert seen == []
    loop.advance(0.1)
    assert seen == ["interrupt"]


def test_programs_that_the_code_has_started_are_charged_from_the_second_look_on() -> None:
    loop, _cell, host, seen = clock(10, 2, others=1.0)
    host.waits(True)
    loop.advance(19.9)
    assert seen == []
    loop.advance(0.1)
    assert seen == ["interrupt"]


def test_questions_one_after_the_other_do_not_hide_a_worker_that_spins() -> None:
    loop, _cell, host, seen = clock(10, 2, worker=1.0)
    while not seen and loop.now < 100:
        host.waits(True)
        loop.advance(0.5)
        host.waits(False)
        host.waits(True)
    assert (seen, loop.now) == (["interrupt"], 10)


def test_time_that_was_counted_is_not_counted_twice() -> None:
    loop, _cell, host, seen = clock(10, 2, worker=0.5)
    loop.advance(8)  # runs; half of it on the processor
    host.waits(True)
    loop.advance(4)  # its thread goes on at half speed: 6 s of processor time in all, and 8 have been counted
    assert seen == []
    host.waits(False)
    loop.advance(2.1)
    assert seen == ["interrupt"]


def test_a_long_wait_is_looked_at_now_and_then_only() -> None:
    loop, _cell, host, _ = clock(10, 2)
    loop.advance(9.999)
    host.waits(True)
    loop.advance(100)
    assert len(loop.live) == 1
    assert loop.live[0][0] - loop.now <= agent_clock.LOOK_S
    assert 0 < host.asked <= 100 / agent_clock.LOOK_S + 1


def test_waiting_does_not_stretch_the_grace() -> None:
    loop, cell, host, seen = clock(0, 2)
    loop.advance(100)
    cell.stop("interrupted")
    host.waits(True)
    loop.advance(2)
    assert seen == ["interrupt", "interrupted"]


def test_a_cell_that_has_ended_is_neither_interrupted_nor_killed() -> None:
    loop, cell, _host, seen = clock(10, 2)
    loop.advance(5)
    assert cell.finish() == 5
    loop.advance(100)
    assert seen == []


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0])
def test_an_odd_limit_is_no_limit(odd: float) -> None:
    loop, _, _, seen = clock(odd, 1)
    loop.advance(1e9)
    assert seen == []


def settings(**environment: str) -> Any:
    return agent_settings.Settings({"RLM_ADDRESS": "unix:/rlm/socket"} | environment)


def test_settings_have_the_images_defaults() -> None:
    assert settings().context_dir == "/rlm"
    assert settings(RLM_ADDRESS="unix:///a/b/socket").context_dir == "/a/b"
    assert settings(RLM_ADDRESS="dns:host:1").context_dir == "/rlm"
    assert settings(RLM_ADDRESS="dns:host:1", RLM_CONTEXT_DIR="/c").context_dir == "/c"


@pytest.mark.parametrize("text", ["-1", "soon", "inf", "nan"])
def test_a_wrong_number_is_named_with_its_rule(text: str) -> None:
    with pytest.raises(agent_settings.SettingsError, match=r"RLM_ATTACH_TIMEOUT_S.*at least 0"):
        settings(RLM_ATTACH_TIMEOUT_S=text)


@pytest.mark.parametrize(
    ("exit_code", "killed_for", "oom", "cause", "code"),
    [
        (0, "", False, "exited", 0),
        (3, "", True, "exited", 3),
        (-signal.SIGSEGV, "", False, "crashed", 11),
        (-signal.SIGKILL, "", True, "out_of_memory", 0),
        (-signal.SIGKILL, "", False, "crashed", 9),
        (-signal.SIGKILL, "timed_out", True, "timed_out", 0),
        (3, "timed_out", False, "exited", 3),
        (97, "", False, "protocol", 0),
    ],
)
def test_a_death_has_one_cause(
    tmp_path: Path, exit_code: int, killed_for: str, oom: bool, cause: str, code: int
) -> None:
    (tmp_path / "memory").mkdir()
    control = tmp_path / "memory" / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    memory = agent_processes.OutOfMemory(settings(RLM_CGROUP=str(tmp_path)))
    if oom:
        control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    death = agent_processes.death_of(exit_code, killed_for, memory)
    assert (death.cause, death.code) == (cause, code)


def test_a_metaclass_cannot_run_code_in_the_list_of_variables() -> None:
    class Meta(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise AssertionError

        def __eq__(cls, other: object) -> bool:
            raise SystemExit

        def __hash__(cls) -> int:
            raise SystemExit

    class Odd(metaclass=Meta):
        pass

    found = worker_describe.variables({"odd": Odd(), 3: 1, "_hidden": 1, "m": json, "s": "xy"}, {})  # type: ignore[dict-item]
    assert found == [("s", "str", "2 characters"), ("odd", "Odd", "")]


def test_keys_of_a_namespace_cannot_run_code_in_the_list_of_variables() -> None:
    armed = False

    class Key:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            if armed:
                raise SystemExit
            return self is other

    namespace: dict[Any, Any] = {f"n{number}": number for number in range(1000)} | {Key(): 1, Key(): 2}
    for number in range(999):  # a dict that is nearly empty is copied key by key
        del namespace[f"n{number}"]
    armed = True
    assert worker_describe.variables(namespace, {}) == [("n999", "int", "")]


def test_nested_containers_are_abridged_and_cycles_end() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert worker_describe.shown({"k": [cycle]}).startswith("{'k': [[1, [1, ")
    wide = worker_describe.shown([["x" * 100] * 300] * 300)
    assert len(wide) < 210_000
    assert "100 more" in wide


def test_a_cut_text_tells_how_much_is_missing() -> None:
    assert worker_describe.cut("abc", 3) == "abc"
    assert "[... 70 characters left out ...]" in worker_describe.cut("x" * 100, 30)


def test_an_exception_whose_text_fails_is_described() -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise ValueError

    described = worker_tracebacks.describe(Bad())
    assert described.type_name == "Bad"
    assert "raised ValueError" in described.message
