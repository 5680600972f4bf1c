"""Who reads what the worker is answered: threads, tasks and the main thread in turns, and what breaks them off."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.unit.asks_server import CANCELLED, Asked, GivenUp
from tests.unit.guest_modules import DrivenWorker, guest_frames

# Waits until a thread sleeps in a wait of its own: as the leader, or as a follower.
UNTIL_WAITING = (
    "import sys, threading\n"
    "def until_waiting(thread):\n"
    "    while True:\n"
    "        frame = sys._current_frames().get(thread.ident)\n"
    "        if frame is not None and frame.f_code.co_name == 'let_through': return\n"
)
CUT_OFF = 97  # the exit status of a worker that cannot reach its agent any more

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
    found = worker.calls(9)
    for prompt in sorted(found, reverse=order < 0):
        found[prompt].answer(("", f"a{prompt}"))
    assert worker.end().stdout == "(9, True)\n"


def test_frames_may_come_in_pieces_and_together(worker: DrivenWorker) -> None:
    worker.start("import asyncio\n[len(a) for a in await asyncio.gather(*map(allm_query, 'abc'))]")
    found = worker.calls(3)
    frames = b"".join(found[p].answer_bytes(("", p * size)) for p, size in (("a", 3), ("b", 700_000), ("c", 0)))
    for piece in (frames[:1], frames[1:5], frames[5:9], frames[9:60], frames[60:100_000], frames[100_000:]):
        worker.asks.send_bytes(piece)
        time.sleep(0.001)  # so that they are read one by one, if at all possible
    assert worker.end().stdout == "[3, 700000, 0]\n"


def test_an_interrupt_reaches_the_main_thread_as_the_leader(worker: DrivenWorker) -> None:
    worker.start("llm_query('q')")
    worker.calls(1)
    worker.interrupt()
    assert worker.end().error[0] == "KeyboardInterrupt"
    assert worker.run("llm_query('again')").stdout == "'again'\n"


def test_an_interrupt_reaches_the_main_thread_as_a_follower(worker: DrivenWorker) -> None:
    worker.start(THREAD + "llm_query('m')")
    worker.calls(2)
    worker.interrupt()
    assert worker.end().error[0] == "KeyboardInterrupt"
    assert worker.run("t.join(); llm_query('again'), heard").stdout == "('again', ['ended'])\n"


def test_an_interrupted_leader_leaves_the_reading_to_others(worker: DrivenWorker) -> None:
    code = (
        "heard = []\n"
        "def ask(main=threading.current_thread()): until_waiting(main); heard.append(llm_query('t'))\n"
        "t = threading.Thread(target=ask); t.start()\n"
        "try: llm_query('m')\nexcept KeyboardInterrupt: t.join()\nheard"
    )
    worker.start(code)
    found = worker.calls(2)
    worker.interrupt()
    assert worker.receive() == GivenUp(found["m"].stream)
    found["t"].answer(("", "answer"))
    assert worker.end().stdout == "['answer']\n"


def test_a_thread_of_a_cell_that_is_being_stopped_is_told_by_the_host(worker: DrivenWorker) -> None:
    worker.start(THREAD + "try: threading.Event().wait(llm_query('m'))\nexcept KeyboardInterrupt: t.join()\nheard")
    found = worker.calls(2)
    worker.interrupt()
    assert worker.receive() == GivenUp(found["m"].stream)
    found["t"].refuse(CANCELLED, "the cell has ended")
    assert worker.end().stdout == "['ended']\n"


def test_a_leader_of_an_earlier_cell_leaves_without_an_answer(worker: DrivenWorker) -> None:
    worker.start(THREAD)
    call = worker.calls(1)["t"]
    assert worker.end().status == "ok"
    assert worker.given_up == {call.stream}
    assert worker.run("t.join(); heard").stdout == "['ended']\n"
    assert worker.run("llm_query('q')").stdout == "'q'\n"


def test_a_leader_of_an_earlier_cell_hands_on_what_is_for_the_next(worker: DrivenWorker) -> None:
    worker.start(THREAD)
    worker.calls(1)
    worker.asks.mute()  # so that the thread hears of the end of its cell with the answer to the next one's question
    assert worker.end().status == "ok"
    worker.start("got = llm_query('q'); t.join(); got, heard")
    worker.calls(1)["q"].answer(("", "a"))
    worker.asks.unmute()
    assert worker.end().stdout == "('a', ['ended'])\n"


def test_a_thread_of_an_earlier_cell_may_ask_in_a_later_one(worker: DrivenWorker) -> None:
    code = (
        "gate = threading.Event()\nheard = []\n"
        "def later():\n    gate.wait(); heard.append(llm_query('later'))\n"
        "t = threading.Thread(target=later); t.start()"
    )
    worker.run(code)
    assert worker.run("gate.set(); t.join(); heard").stdout == "['later']\n"


def test_what_a_thread_asks_between_cells_is_refused_and_not_sent(worker: DrivenWorker) -> None:
    code = (
        "import os\n"
        "heard = []\n"
        "def go_on():\n"
        "    while len(heard) < 100:\n"
        "        try: heard.append(llm_query('t'))\n"
        "        except SubcallFailed as error: heard.append(error.reason)\n"
        "    os.write(1, b'told')\n"
        "t = threading.Thread(target=go_on); t.start(); until_waiting(t)"
    )
    worker.start(code)
    worker.calls(1)  # the one that ends with its cell
    assert (worker.end().stdout or worker.written()) == "told"
    worker.asked.clear()
    assert worker.run("llm_query('m'), heard == ['ended'] * 100").stdout == "('m', True)\n"
    assert worker.asked == [[("m", "", b"")]]


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
        report = worker.end()
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
    call = worker.calls(1)["q"]
    worker.interrupt()
    call.answer(("", "a"))
    assert worker.end().stdout == "'a'\n"
    assert worker.run("signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])").stdout == "set()\n"
    worker.start("llm_query('q')")
    worker.calls(1)
    worker.interrupt()
    assert worker.end().error[0] == "KeyboardInterrupt"


def test_a_signal_handler_that_raises_loses_no_frame(worker: DrivenWorker) -> None:
    code = (
        "import signal, time\n"
        "def late(*_): raise TimeoutError\n"
        "signal.signal(signal.SIGALRM, late)\n"
        "hits = 0\n"
        "for n in range(400):\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 1e-6 + n % 100 * 1e-5)\n"
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
    worker.calls(1)
    while isinstance(event := worker.receive(), Asked | GivenUp):
        pass  # whether the inner question is sent, and taken back, is not the code's business
    assert "cannot ask while its thread waits" in worker.report(*event).error[1]


def test_a_worker_whose_agent_is_gone_ends_at_its_next_wait(worker: DrivenWorker) -> None:
    worker.start("llm_query('q')")
    worker.calls(1)  # `close` waits for the end of the process


def test_frames_of_the_wrong_form_end_the_worker(worker: DrivenWorker) -> None:
    worker.send_bytes(guest_frames.HEADER.pack(1, 1) + b"xx")
    assert worker.exit_status() == CUT_OFF


@pytest.mark.parametrize(
    "frames",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",  # a frame of five million bytes
        b"\0\0\4\1\5\0\0\0\1\xff\xff\xff\xff",  # HEADERS of stream 1 that no table can hold
        b"\0\0\5\5\4\0\0\0\1\0\0\0\2\x88",  # PUSH_PROMISE
        b"\0\0\1\3\0\0\0\0\1\0",  # RST_STREAM without a whole number
    ],
)
def test_what_is_not_http2_ends_the_worker_that_waits_for_an_answer(worker: DrivenWorker, frames: bytes) -> None:
    worker.start("llm_query('q')")
    worker.calls(1)
    worker.asks.send_bytes(frames)
    assert worker.exit_status() == CUT_OFF


@pytest.mark.parametrize("asked", [True, False])
def test_a_worker_that_asks_a_host_that_has_hung_up_ends(worker: DrivenWorker, asked: bool) -> None:
    if asked:
        worker.start("llm_query('q')")
        worker.calls(1)
        worker.asks.hang_up()
    else:
        worker.asks.hang_up()
        worker.start("llm_query('q')")
    assert worker.exit_status() == CUT_OFF


def test_a_question_larger_than_the_windows_waits_and_small_ones_pass_beside_it(worker: DrivenWorker) -> None:
    worker.asks.hold()
    worker.start(THREAD.replace("'t'", "'t' * 3_000_000") + "small = llm_query('m'); t.join(); small, heard")
    worker.calls(1)["m"].answer(("", "a"))  # which came whole while the other one could not
    worker.asks.release()
    ((prompt, call),) = worker.calls(1).items()
    assert prompt == "t" * 3_000_000
    call.answer(("", "b"))
    assert worker.end().stdout == "('a', ['b'])\n"


def test_a_question_that_is_given_up_half_sent_leaves_room_for_others(worker: DrivenWorker) -> None:
    worker.asks.hold()
    worker.start(THREAD.replace("'t'", "'t' * 3_000_000") + "llm_query('m')")
    worker.calls(1)
    worker.interrupt()
    assert worker.end().error[0] == "KeyboardInterrupt"
    assert len(worker.given_up) == 2
    worker.asks.release()
    code = "t.join(); text = 'x' * 3_000_000; heard, llm_query(text) == text"
    assert worker.run(code).stdout == "(['ended'], True)\n"


def test_large_questions_and_answers_pass_whole_from_several_threads(worker: DrivenWorker) -> None:
    code = (
        "texts = [str(n) * 10_000_000 for n in range(3)]\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(3) as pool: same = list(pool.map(llm_query, texts)) == texts\nsame"
    )
    assert worker.run(code).stdout == "True\n"
