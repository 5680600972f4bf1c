"""One loop for blocking and asynchronous callers; a caller that stops waits for the cleanup of what it stopped."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from orchestrator.held import Held
from orchestrator.loop_thread import GivenUp, LoopThread
from tests.unit.held_doubles import Room


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread("test-loop")
    yield thread
    thread.close()


async def _name() -> str:
    return threading.current_thread().name


def test_blocking_callers_are_served_by_the_loops_own_thread(loop: LoopThread) -> None:
    assert loop.call(_name()) == "test-loop"


async def test_callers_in_another_loop_are_served_by_it_too(loop: LoopThread) -> None:
    assert await loop.call_async(_name()) == "test-loop"


def test_what_the_work_raises_is_raised_to_the_caller(loop: LoopThread) -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.call(fail())


async def test_cancelling_the_waiter_cancels_the_work_and_waits_for_its_cleanup(loop: LoopThread) -> None:
    began, cleaned = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    waiter = asyncio.create_task(loop.call_async(work()))
    await asyncio.to_thread(began.wait)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert cleaned.is_set()


def test_a_blocking_call_from_the_loop_itself_is_refused(loop: LoopThread) -> None:
    async def inside() -> None:
        with pytest.raises(RuntimeError, match="await the async twin"):
            loop.call(_name())

    loop.call(inside())


def test_work_that_nobody_refers_to_is_not_collected(loop: LoopThread) -> None:
    resumed = threading.Event()
    began = threading.Event()

    async def work() -> None:
        gate = asyncio.get_running_loop().create_future()
        began.gate = gate  # type: ignore[attr-defined]
        began.set()
        await gate
        resumed.set()

    loop.submit(work())
    began.wait()
    gc.collect()

    async def open_gate() -> None:
        began.gate.set_result(None)  # type: ignore[attr-defined]

    loop.call(open_gate())
    assert resumed.wait(5)


def test_closing_cancels_what_still_runs() -> None:
    thread = LoopThread()
    began, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    thread.submit(work())
    began.wait()
    thread.close()
    assert cancelled.is_set()


def test_closing_tells_who_waits_that_it_was_given_up() -> None:
    thread = LoopThread()
    began = threading.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    started = thread.submit(work())
    began.wait()
    thread.close()
    with pytest.raises(GivenUp):
        started.outcome.result()
    started.cancel()  # of what has ended does nothing
    with pytest.raises(RuntimeError, match="is closed"):
        thread.call(_name())


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
def test_work_that_wants_the_program_to_end_ends_its_caller_and_not_the_loop(
    loop: LoopThread, stop: type[BaseException]
) -> None:
    async def work() -> None:
        raise stop("enough")

    with pytest.raises(stop):
        loop.call(work())
    assert loop.call(_name()) == "test-loop"


def in_a_process(code: str) -> str:
    """What a script says that uses the process's loop."""
    script = f"import asyncio, os, sys, threading\nfrom orchestrator.loop_thread import process_loop\n{code}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stderr == ""
    return ran.stdout


def test_a_forked_child_ends_and_can_have_a_loop_of_its_own() -> None:
    code = (
        "old = process_loop()\nold.call(asyncio.sleep(0))\n"
        "if (child := os.fork()) == 0:\n"
        "    try: old.call(asyncio.sleep(0))\n"
        "    except RuntimeError as error: print('forked' in str(error), flush=True)\n"
        "    old.close()\n    process_loop().call(asyncio.sleep(0))\n    print('child', flush=True)\n    sys.exit()\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert in_a_process(code) == "True\nchild\n0\n"


def test_the_work_of_a_thread_is_waited_for_at_the_end_as_the_thread_itself_is() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "async def answer(text):\n    await asyncio.sleep(0.05)\n    return text\n"
        "def ask(text): sys.stdout.write(process_loop().call(answer(text)) + '\\n')\n"
        "ask('main')\nThreadPoolExecutor(1).submit(ask, 'pool')\n"
        "def twice():\n    ask('thread')\n    ask('again')\n"
        "threading.Thread(target=twice).start()"
    )
    assert sorted(in_a_process(code).split()) == ["again", "main", "pool", "thread"]


async def test_a_held_manager_is_entered_and_left_by_one_task() -> None:
    room = Room()
    held = await asyncio.create_task(Held.enter(room.stay()))
    assert held.value is room
    await asyncio.create_task(held.leave())
    assert room.entered_by is room.left_by is not None


async def test_what_entering_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="full"):
        await Held.enter(Room(full=True).stay())


async def test_a_caller_that_stops_while_entering_leaves_nothing_behind() -> None:
    room = Room(slow=True)
    entering = asyncio.create_task(Held.enter(room.stay()))
    await room.asked.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert room.left_by is not None
