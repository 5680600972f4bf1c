"""Who reads the worker's control socket: threads, tasks and the main thread in turns, and what breaks them off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.guest_modules import DrivenWorker, guest_frames, reply_frame

# Waits until a thread sleeps in a wait of its own: as the leader, or as a follower.
UNTIL_WAITING = (
    "import sys, threading\n"
    "def until_waiting(thread):\n"
    "    while True:\n"
    "        frame = sys._current_frames().get(thread.ident)\n"
    "        if frame is not None and frame.f_code.co_name == 'let_through': return\n"
)
THREAD = (
    "heard = []\n"
    "def ask(prompt):\n"
    "    try: heard.append(llm_query(prompt))\n"
    "    except SubcallFailed as error: heard.append(error.reason)\n"
    "t = threading.Thread(target=ask, args=('t',)); t.start(); until_waiting(t)\n"
)


@pytest.fixture
def worker() -> Iterator[DrivenWorker]:
    driven = DrivenWorker()
    driven.open()
    driven.run(UNTIL_WAITING)
    yield driven
    driven.close()


def asks(worker: DrivenWorker, count: int) -> dict[str, dict[str, Any]]:
    """The worker's next asks, of one question each, by their prompts."""
    found = {}
    for _ in range(count):
        message, data = worker.receive()
        assert message["op"] == "ask"
        found[data.decode()] = message
    return found


def ended(worker: DrivenWorker) -> Any:
    """The report of the cell that runs; cancelled asks may come before it."""
    while True:
        message, data = worker.receive()
        if message["op"] == "ended":
            return worker.report(message, data)
        assert message["op"] == "cancel"


def refuse(worker: DrivenWorker, ask: dict[str, Any]) -> None:
    """As the agent does at the end of a cell."""
    worker.send({"op": "reply", "id": ask["id"], "refused": ["ended", "its cell has ended"]})


def test_a_worker_that_does_not_await_has_one_thread(worker: DrivenWorker) -> None:
    assert worker.run("llm_query('q'); len(threading.enumerate())").stdout == "1\n"


def test_threads_are_answered_while_the_main_thread_computes(worker: DrivenWorker) -> None:
    code = (
        "got = []\nthreads = [threading.Thread(target=lambda n=n: got.append(llm_query(str(n)))) for n in range(8)]\n"
        "for t in threads: t.start()\n"
        "while len(got) < 8: pass\nsorted(got)"
    )
    assert worker.run(code).stdout == f"{[str(n) for n in range(8)]}\n"


@pytest.mark.parametrize("order", [1, -1])
def test_whoever_leads_hands_on_what_is_for_others(worker: DrivenWorker, order: int) -> None:
    code = (
        "got = {}\ndef ask(n): got[n] = llm_query(str(n))\n"
        "threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]\n"
        "for t in threads: t.start(); until_waiting(t)\n"
        "ask(8)\nfor t in threads: t.join()\nlen(got), all(got[n] == f'a{n}' for n in got)"
    )
    worker.start(code)
    found = asks(worker, 9)
    for prompt in sorted(found, reverse=order < 0):
        worker.send_bytes(reply_frame(found[prompt], ("", f"a{prompt}")))
    assert ended(worker).stdout == "(9, True)\n"


def test_frames_may_come_in_pieces_and_together(worker: DrivenWorker) -> None:
    worker.start("import asyncio\n[len(a) for a in await asyncio.gather(*map(allm_query, 'abc'))]")
    found = asks(worker, 3)
    frames = b"".join(reply_frame(found[p], ("", p * size)) for p, size in (("a", 3), ("b", 700_000), ("c", 0)))
    for piece in (frames[:1], frames[1:5], frames[5:9], frames[9:60], frames[60:100_000], frames[100_000:]):
        worker.send_bytes(piece)
        time.sleep(0.001)  # so that they are read one by one, if at all possible
    assert ended(worker).stdout == "[3, 700000, 0]\n"


def test_an_interrupt_reaches_the_main_thread_as_the_leader(worker: DrivenWorker) -> None:
    worker.start("llm_query('q')")
    asks(worker, 1)
    worker.interrupt()
    assert ended(worker).error[0] == "KeyboardInterrupt"
    assert worker.run("llm_query('again')").stdout == "'again'\n"


def test_an_interrupt_reaches_the_main_thread_as_a_follower(worker: DrivenWorker) -> None:
    worker.start(THREAD + "llm_query('m')")
    found = asks(worker, 2)
    worker.interrupt()
    assert ended(worker).error[0] == "KeyboardInterrupt"
    refuse(worker, found["t"])
    assert worker.run("t.join(); llm_query('again'), heard").stdout == "('again', ['ended'])\n"


def test_an_interrupted_leader_leaves_the_reading_to_others(worker: DrivenWorker) -> None:
    code = (
        "heard = []\n"
        "def ask(main=threading.current_thread()): until_waiting(main); heard.append(llm_query('t'))\n"
        "t = threading.Thread(target=ask); t.start()\n"
        "try: llm_query('m')\nexcept KeyboardInterrupt: t.join()\nheard"
    )
    worker.start(code)
    found = asks(worker, 2)
    worker.interrupt()
    assert worker.receive()[0]["op"] == "cancel"
    worker.send_bytes(reply_frame(found["t"], ("", "answer")))
    assert ended(worker).stdout == "['answer']\n"


def test_a_leader_of_an_earlier_cell_hands_the_next_one_over(worker: DrivenWorker) -> None:
    worker.start(THREAD)
    found = asks(worker, 1)
    assert ended(worker).status == "ok"
    # Before the refusal, so that the thread reads the cell.
    assert worker.run("t.join(); heard").stdout == "['ended']\n"
    refuse(worker, found["t"])
    assert worker.run("llm_query('q')").stdout == "'q'\n"


def test_a_thread_may_ask_between_cells(worker: DrivenWorker) -> None:
    code = (
        "gate = threading.Event()\nheard = []\n"
        "def later():\n    gate.wait(); heard.append(llm_query('later'))\n"
        "t = threading.Thread(target=later); t.start()"
    )
    worker.run(code)
    assert worker.run("gate.set(); t.join(); heard").stdout == "['later']\n"


def test_asks_of_all_kinds_at_once(worker: DrivenWorker) -> None:
    code = (
        "import asyncio\n"
        "async def both(n): return await allm_query(f'a{n}'), await asyncio.to_thread(llm_query, f's{n}')\n"
        "got = await asyncio.gather(*map(both, range(100)))\n"
        "sync = llm_query('s')\n"
        "threads = [threading.Thread(target=lambda: asyncio.run(both(1))) for _ in range(5)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
        "got == [(f'a{n}', f's{n}') for n in range(100)], sync"
    )
    for _ in range(3):
        assert worker.run(code).stdout == "(True, 's')\n"
        assert worker.run("llm_query('x'), (await allm_query('y'))").stdout == "('x', 'y')\n"


def test_an_interrupt_that_races_with_the_end_of_its_cell_hits_no_other(worker: DrivenWorker) -> None:
    statuses = set()
    until = time.monotonic() + 1
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
        worker.start("for _ in range(100): pass")
        spins = time.perf_counter() + rounds % 50 * 4e-6
        while time.perf_counter() < spins:
            pass
        worker.interrupt()
        report = ended(worker)
        statuses.add(report.status)
        if report.status == "error":
            assert report.error[0] == "KeyboardInterrupt"
        assert worker.run("sum(range(100))").stdout == "4950\n"
    assert rounds > 100
    assert "ok" in statuses


@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "signal.default_int_handler", "lambda *_: 1 / 0"])
def test_between_cells_an_interrupt_hits_no_handler_of_the_code(worker: DrivenWorker, handler: str) -> None:
    worker.run(f"import signal; signal.signal(signal.SIGINT, {handler})")
    worker.interrupt()
    assert worker.run("1").stdout == "1\n"


def test_an_interrupt_that_its_cell_has_blocked_does_not_hit_the_next(worker: DrivenWorker) -> None:
    worker.start("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); llm_query('q')")
    (ask,) = asks(worker, 1).values()
    worker.interrupt()
    worker.send_bytes(reply_frame(ask, ("", "a")))
    assert ended(worker).stdout == "'a'\n"
    assert worker.run("signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])").stdout == "set()\n"
    worker.start("llm_query('q')")
    asks(worker, 1)
    worker.interrupt()
    assert ended(worker).error[0] == "KeyboardInterrupt"


def test_a_signal_handler_that_raises_loses_no_frame(worker: DrivenWorker) -> None:
    code = (
        "import signal, time\n"
        "def late(*_): raise TimeoutError\n"
        "signal.signal(signal.SIGALRM, late)\n"
        "hits = 0\n"
        "for n in range(400):\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 1e-6 + n % 100 * 2e-6)\n"
        "        try:\n            assert llm_query(str(n)) == str(n)\n"
        "        finally: signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "    except TimeoutError: hits += 1\n"
        "assert hits and llm_query('whole') == 'whole'"
    )
    assert worker.run(code).error == ("", "", "")
    assert worker.run("llm_query('q')").stdout == "'q'\n"


def test_a_handler_that_asks_while_its_thread_waits_is_told_so(worker: DrivenWorker) -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGALRM, lambda *_: llm_query('inner'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "llm_query('outer')"
    )
    worker.start(code)
    asks(worker, 2)
    assert "cannot ask while its thread waits" in ended(worker).error[1]


def test_a_worker_whose_agent_is_gone_ends_at_its_next_wait(worker: DrivenWorker) -> None:
    worker.start("llm_query('q')")
    asks(worker, 1)  # `close` waits for the end of the process


def test_frames_of_the_wrong_form_end_the_worker(worker: DrivenWorker) -> None:
    worker.send_bytes(guest_frames.HEADER.pack(1, 1) + b"xx")
    with pytest.raises((AssertionError, ConnectionResetError)):
        worker.receive()
