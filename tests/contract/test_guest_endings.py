"""How cells, workers and guests end, and what the host is told: interrupts, deaths, and the end of the stream."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from tests.contract.guest_host import GUEST, GuestHost, echo, guest_host, never


@pytest.fixture
async def host() -> AsyncIterator[GuestHost]:
    async with guest_host() as attached:
        await attached.open()
        yield attached


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_spinning_cell_is_interrupted_at_its_limit_and_keeps_its_state(host: GuestHost) -> None:
    ran = await host.run("x = 1\nwhile True: x += 1", time_limit_s=0.2)
    assert (ran.status, ran.ended.error.type_name) == ("TIMED_OUT", "KeyboardInterrupt")
    assert "line 2" in ran.ended.error.traceback
    assert ran.ended.seconds >= 0.2
    assert (await host.run("x > 1")).stdout == "True\n"


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(1000)",
        "import subprocess\nsubprocess.run(['sleep', '1000'])",
        "import threading\nthreading.Event().wait()",
        "7 ** 60_000_000",  # in C, which holds the interpreter but looks for signals
        "import re\nre.match('(a*)*b', 'a' * 60)",
        "import asyncio\nawait asyncio.sleep(1000)",
        "import asyncio\nasyncio.run(asyncio.sleep(1000))",
        "llm_query('never answered')",
        "await allm_query('never answered')",
        "from concurrent.futures import ThreadPoolExecutor as T\nwith T(5) as p: list(p.map(llm_query, 'abcdefghij'))",
        "class R:\n    def __repr__(self):\n        while True: pass\nR()",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    ],
)
async def test_an_interrupt_stops_what_waits_or_spins_and_keeps_state(host: GuestHost, code: str) -> None:
    host.answer = never
    await host.run("kept = 1")
    host.start("import os; os.write(2, b'.')\n" + code, grace_s=30)
    await host.receive()  # it runs
    host.interrupt()
    assert (await host.end()).status == "INTERRUPTED"
    assert (await host.run("kept")).stdout == "1\n"


@pytest.mark.parametrize(
    "code",
    [
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "import time\nwhile True:\n    try: time.sleep(1000)\n    except BaseException: pass",
        "x = sum(range(10 ** 15))",  # in C, which looks for no signal
    ],
)
@pytest.mark.parametrize("cause", ["TIMED_OUT", "INTERRUPTED"])
async def test_code_that_does_not_stop_is_killed_after_the_grace(host: GuestHost, code: str, cause: str) -> None:
    await host.run("kept = 1")
    host.start("import os; os.write(2, b'.')\n" + code, time_limit_s=0.2 if cause == "TIMED_OUT" else 60, grace_s=0.2)
    if cause == "INTERRUPTED":
        await host.receive()
        host.interrupt()
    ran = await host.end()
    assert (ran.status, ran.cause, ran.names) == ("WORKER_DIED", cause, {})
    assert (await host.run("'kept' in globals()")).stdout == "False\n"


async def test_an_interrupt_after_the_end_does_not_hit_the_next_cell(host: GuestHost) -> None:
    for _ in range(50):
        host.start("1")
        host.interrupt()
        assert (await host.end()).status in {"OK", "INTERRUPTED"}
        assert (await host.run("n = sum(range(1000)); n")).stdout == "499500\n"


async def test_waiting_for_answers_does_not_count_as_running() -> None:
    async with guest_host(RLM_HEARTBEAT_S="0.1") as host:
        await host.open()

        async def slow(request: pb.AskRequest) -> pb.AskResponse:
            for _ in range(8):  # heartbeats: longer than the cell may run
                await host.beats.acquire()
            return await echo(request)

        host.answer = slow
        assert (await host.run("llm_query('q')", time_limit_s=0.4)).status == "OK"
        assert (await host.run("llm_query('q')\nwhile True: pass", time_limit_s=0.4)).status == "TIMED_OUT"


@pytest.mark.parametrize(
    ("code", "cause", "number"),
    [
        ("import os; os._exit(7)", "EXITED", 7),
        ("import ctypes; ctypes.string_at(0)", "CRASHED", 11),
        ("import os; os.abort()", "CRASHED", 6),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)\nwhile True: pass", "CRASHED", 15),
        ("import os; os.closerange(3, 4096)", "PROTOCOL", 0),
        ("import os, stat\nfor fd in range(3, 1100):\n  try:\n"
         "    if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b'*' * 99)\n"
         "  except OSError: pass\nwhile True: pass", "PROTOCOL", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGFPE)\nwhile True: pass", "CRASHED", 8),
    ],
)  # fmt: skip
async def test_a_workers_death_has_its_cause_and_a_fresh_one_is_up(
    host: GuestHost, code: str, cause: str, number: int
) -> None:
    await host.run("kept = 1")
    ran = await host.run("import os; os.write(1, b'last words')\n" + code)
    assert (ran.status, ran.cause, ran.ended.worker_death.code) == ("WORKER_DIED", cause, number)
    assert ran.stdout == "last words"
    assert ran.ended.stdout_bytes == 10
    assert (await host.run("print('kept' in globals(), llm_query('hi'))")).stdout == "False hi\n"


async def test_sigkill_is_out_of_memory_only_when_the_kernel_says_so(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 1\noom_kill 1\n")
    async with guest_host(RLM_CGROUP=str(tmp_path)) as host:
        await host.open()
        kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        ran = await host.run(kill)
        assert (ran.cause, ran.ended.worker_death.code) == ("CRASHED", 9)
        oom = f"open({str(events)!r}, 'w').write('low 0\\noom 2\\noom_kill 2\\n')\n"
        assert (await host.run(oom + kill)).cause == "OUT_OF_MEMORY"
        assert (await host.run(kill)).cause == "CRASHED"
        events.unlink()
        assert (await host.run(kill)).cause == "OUT_OF_MEMORY"


async def test_a_daemon_that_holds_the_pipes_hangs_nothing_and_dies_with_its_worker(host: GuestHost) -> None:
    code = (
        "import os\nr, w = os.pipe()\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.write(w, str(os.getpid()).encode())\n        import time; time.sleep(1000)\n    os._exit(0)\n"
        "os.wait(); int(os.read(r, 20))"
    )
    daemon = int((await host.run(code)).stdout)
    assert alive(daemon)
    assert (await host.run("1")).status == "OK"
    assert (await host.run("os._exit(0)")).cause == "EXITED"
    async with asyncio.timeout(20):
        await gone(daemon)  # a kill that was sent takes its moment on a machine that is busy


async def gone(pid: int) -> None:
    """Waits for the end of a process that is not ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)


async def test_a_death_between_cells_is_told_by_the_next_one(host: GuestHost) -> None:
    fifo = host.folder / "fifo"
    os.mkfifo(fifo)
    code = (
        "import os, threading\nkept = 1\n"
        f"def die():\n    open({str(fifo)!r}).read()\n    os._exit(4)\n"
        "threading.Thread(target=die).start()\nos.getpid()"
    )
    worker = int((await host.run(code)).stdout)
    await asyncio.to_thread(fifo.write_text, "now")
    await gone(worker)
    ran = await host.run("kept")
    assert (ran.status, ran.cause, ran.ended.worker_death.code) == ("WORKER_DIED", "EXITED", 4)
    assert (await host.run("'kept' in globals()")).stdout == "False\n"


async def test_the_guest_ends_with_its_stream_and_leaves_no_process() -> None:
    async with guest_host() as host:
        await host.open()
        child = int((await host.run("import os, subprocess\nsubprocess.Popen(['sleep', '1000']).pid")).stdout)
        worker = int((await host.run("os.getpid()")).stdout)
        host.hang_up()
        assert host.agent is not None
        assert await host.agent.wait() == 0
        await gone(child)
        await gone(worker)


async def test_a_worker_that_spins_ends_with_an_agent_that_was_killed() -> None:
    async with guest_host() as host:
        await host.open()
        worker = int((await host.run("import os; os.getpid()")).stdout)
        host.start("os.write(1, b'.')\nwhile True: pass")
        await host.receive()
        assert host.agent is not None
        host.agent.kill()
        await gone(worker)


async def test_the_guest_ends_when_its_lifetime_is_over() -> None:
    async with guest_host(RLM_MAX_LIFETIME_S="1") as host:
        await host.open()
        host.start("while True: pass")
        assert host.agent is not None
        assert await host.agent.wait() == 3


async def agent_alone(**environment: str) -> tuple[int, str]:
    """An agent without a host: its exit status and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(GUEST / "main.py"), env=os.environ | environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_the_guest_ends_when_there_is_no_host(tmp_path: Path) -> None:
    status, _ = await agent_alone(RLM_ADDRESS=f"unix:{tmp_path}/none", RLM_ATTACH_TIMEOUT_S="0.2")
    assert status == 3


async def test_a_missing_or_wrong_setting_is_named() -> None:
    assert await agent_alone() == (
        2,
        "rlm agent: RLM_ADDRESS is not set. Set it to the host's gRPC address, such as unix:/rlm/socket\n",
    )
    status, said = await agent_alone(RLM_ADDRESS="unix:/x", RLM_HEARTBEAT_S="often")
    assert (status, "RLM_HEARTBEAT_S is 'often'" in said) == (2, True)


async def test_messages_out_of_order_end_the_guest() -> None:
    for message in (
        pb.AttachResponse(run_cell=pb.RunCell(cell=1, code="1")),
        pb.AttachResponse(open=pb.Open(context=pb.Context(file_name="../x", variable="c", kind=pb.CONTEXT_KIND_TEXT))),
        pb.AttachResponse(),
    ):
        async with guest_host() as host:
            host.send(message)
            assert host.agent is not None
            assert await host.agent.wait() == 1
