"""What the host may count on from a guest: a real agent and its worker, on this machine, talking to a small host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from tests.contract.guest_host import GuestHost, echo, guest_host, never, texts


@pytest.fixture
async def host() -> AsyncIterator[GuestHost]:
    async with guest_host() as attached:
        await attached.open()
        yield attached


async def test_the_guest_says_hello_first_and_beats() -> None:
    async with guest_host(RLM_HEARTBEAT_S="0.05") as host:
        assert host.hello is not None
        assert host.hello.protocol_version == 4
        assert host.hello.python_version.startswith("3.")
        for _ in range(3):
            await host.beats.acquire()


async def test_a_heart_beats_while_code_spins_and_holds_the_interpreter() -> None:
    async with guest_host(RLM_HEARTBEAT_S="0.05") as host:
        await host.open()
        host.start("x = sum(range(10 ** 15))", time_limit_s=0.3, grace_s=0.3)
        for _ in range(4):
            await host.beats.acquire()
        assert (await host.end()).cause == "TIMED_OUT"


async def test_a_cell_runs_and_everything_about_it_is_told(host: GuestHost) -> None:
    ran = await host.run("import sys\nx = [1, 2]\nprint('é')\nprint('w', file=sys.stderr)\nFINAL(x)\nlen(x)")
    assert (ran.status, ran.stdout, ran.stderr, ran.final) == ("OK", "é\n2\n", "w\n", "[1, 2]")
    assert (ran.ended.stdout_bytes, ran.ended.stderr_bytes) == (5, 2)
    assert ran.names == {"x": ("list", "2 items")}
    again = await host.run("x.append(3); x")
    assert (again.stdout, again.final) == ("[1, 2, 3]\n", None)


async def test_a_failed_cell_keeps_what_ran_before(host: GuestHost) -> None:
    ran = await host.run("x = 1\nprint('before')\n1 / 0")
    assert (ran.status, ran.stdout, ran.ended.error.type_name) == ("ERROR", "before\n", "ZeroDivisionError")
    assert 'File "<cell 1>", line 3' in ran.ended.error.traceback
    assert (await host.run("x")).stdout == "1\n"


async def test_sys_exit_does_not_eat_the_cells_output(host: GuestHost) -> None:
    ran = await host.run("x = 1\nprint('printed')\nimport sys; sys.exit('bye')")
    assert (ran.status, ran.stdout, ran.ended.error.type_name) == ("ERROR", "printed\n", "SystemExit")
    assert (await host.run("x")).stdout == "1\n"


async def test_output_is_streamed_while_the_cell_runs(host: GuestHost) -> None:
    host.answer = never
    host.start("print('first')\nllm_query('wait')")
    message = await host.receive()
    assert message.output.data == b"first\n"
    host.interrupt()
    assert (await host.end()).status == "INTERRUPTED"


async def test_output_of_subprocesses_and_c_code_is_captured(host: GuestHost) -> None:
    ran = await host.run(
        "import ctypes, os, subprocess\nprint('py')\nsubprocess.run(['sh', '-c', 'echo child; echo err >&2'])\n"
        "libc = ctypes.CDLL(None); libc.puts(b'c'); libc.fflush(None); os.write(1, b'raw\\0\\xff');"
    )
    assert ran.out.data.startswith(b"py\nchild\nc\nraw\0\xff")
    assert ran.stderr == "err\n"


async def test_a_flood_is_cut_to_head_and_tail_and_its_length_told() -> None:
    async with guest_host() as host:
        await host.open(head=1000, tail=500)
        ran = await host.run("import sys\nfor n in range(300_000): print(n)\nprint('E', file=sys.stderr)")
        whole = "".join(f"{n}\n" for n in range(300_000)).encode()
        assert ran.out.data == whole[:1000] + whole[-500:]
        assert ran.out.gaps == [(1000, len(whole) - 500)]
        assert ran.ended.stdout_bytes == len(whole)
        assert ran.stderr == "E\n"
        assert ran.outputs < 50


async def test_a_flood_does_not_delay_callbacks(host: GuestHost) -> None:
    code = (
        "import os, threading\nstop = False\n"
        "def flood():\n    while not stop: os.write(1, b'x' * 65536)\n"
        "t = threading.Thread(target=flood); t.start()\n"
        "answers = [llm_query(str(n)) for n in range(50)]\nstop = True; t.join(); FINAL(answers[-1])"
    )
    ran = await host.run(code)
    assert (ran.status, ran.final) == ("OK", "49")
    assert ran.ended.stdout_bytes > 1 << 16


async def test_asks_from_threads_and_tasks_run_at_the_same_time(host: GuestHost) -> None:
    everyone = asyncio.Barrier(20)

    async def together(request: pb.AskRequest) -> pb.AskResponse:
        await everyone.wait()  # nobody is answered before all twenty have asked
        return await echo(request)

    host.answer = together
    threads = (
        "from concurrent.futures import ThreadPoolExecutor as T\n"
        "with T(20) as pool: r = list(pool.map(llm_query, map(str, range(20))))\nr[7]"
    )
    assert (await host.run(threads)).stdout == "'7'\n"
    tasks = "import asyncio\n(await asyncio.gather(*(allm_query(str(n)) for n in range(20))))[9]"
    assert (await host.run(tasks)).stdout == "'9'\n"


async def test_spinning_beside_a_question_of_another_thread_is_no_waiting(host: GuestHost) -> None:
    host.answer = never
    code = "import threading\nthreading.Thread(target=llm_query, args=['q'], daemon=True).start()\nwhile True: pass"
    ran = await host.run(code, time_limit_s=0.3)
    assert ran.status == "TIMED_OUT"
    await host.cancelled.wait()


async def test_a_program_that_spins_beside_a_question_is_no_waiting(host: GuestHost) -> None:
    host.answer = never
    code = (
        "import subprocess, sys, threading\nthreading.Thread(target=llm_query, args=['q'], daemon=True).start()\n"
        "subprocess.run([sys.executable, '-c', 'while True: pass'])"
    )
    assert (await host.run(code, time_limit_s=0.3)).status == "TIMED_OUT"


async def test_a_cell_that_is_interrupted_while_its_pool_waits_for_answers_ends_and_keeps_its_state(
    host: GuestHost,
) -> None:
    all_here = asyncio.Event()

    async def wait(request: pb.AskRequest) -> pb.AskResponse:
        if len(host.asked) == 5:
            all_here.set()
        return await never(request)

    host.answer = wait
    await host.run("kept = 1")
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(5) as pool:\n    list(pool.map(llm_query, 'abcdefghij'))"
    )
    host.start(code, grace_s=60)
    await all_here.wait()  # else the interrupt could come before there is a thread to join
    host.interrupt()
    assert (await host.end()).status == "INTERRUPTED"
    assert (await host.run("kept")).stdout == "1\n"


async def test_a_cell_at_its_limit_whose_threads_wait_for_answers_ends_and_keeps_its_state(host: GuestHost) -> None:
    host.answer = never
    await host.run("kept = 1")
    code = (
        "from concurrent.futures import ThreadPoolExecutor as T\n"
        "with T(5) as pool:\n    waiting = [pool.submit(llm_query, p) for p in 'abcdefghij']\n    while True: pass"
    )
    # The pool joins its threads before it lets the interrupt pass: their questions have to end, and before the kill.
    assert (await host.run(code, time_limit_s=0.3, grace_s=60)).status == "TIMED_OUT"
    assert (await host.run("kept")).stdout == "1\n"


@pytest.mark.parametrize(
    "code",
    [
        "from concurrent.futures import ThreadPoolExecutor as T\n"
        "with T(4) as pool: r = list(pool.map(llm_query, 'abcd'))\nr[3]",
        "import asyncio\n(await asyncio.gather(*(allm_query(p) for p in 'abcd')))[3]",
        "llm_batch(list('abcd'))[3]",
    ],
)
async def test_waiting_for_answers_is_not_counted_whoever_waits(code: str) -> None:
    async with guest_host(RLM_HEARTBEAT_S="0.05") as host:
        await host.open()

        async def late(request: pb.AskRequest) -> pb.AskResponse:
            for _ in range(12):  # twice the limit
                await host.beats.acquire()
            return await echo(request)

        host.answer = late
        ran = await host.run(code, time_limit_s=0.3)
        assert (ran.status, ran.stdout) == ("OK", "'d'\n")
        assert ran.ended.seconds > 0.3  # the host takes the waiting off


async def test_a_cell_is_not_ended_by_what_an_earlier_one_has_waited(host: GuestHost) -> None:
    """The answer to a time check may cross with the end of its cell."""
    host.tell = lambda _: []
    assert (await host.run("import time; time.sleep(0.3)", time_limit_s=0.1)).status == "OK"
    checks, again = list[pb.Waited](), asyncio.Event()

    def late(waited: pb.Waited) -> list[pb.Waited]:
        checks.append(waited)
        if len(checks) > 1:
            again.set()
            return [waited]
        return [pb.Waited(cell=1), waited]

    async def answer(request: pb.AskRequest) -> pb.AskResponse:
        await again.wait()
        return await echo(request)

    host.tell, host.answer = late, answer
    assert (await host.run("llm_query('q')", time_limit_s=0.1)).status == "OK"


async def test_how_a_call_is_to_be_answered_goes_with_it(host: GuestHost) -> None:
    await host.run("llm_query('a'); llm_batch(['b'], strict=True, recursive=False); rlm_query('c')")
    wishes = [(r.stop_at_failure, r.recursive if r.HasField("recursive") else None) for r in host.asked]
    assert wishes == [(False, None), (True, False), (False, True)]


async def test_a_batch_is_one_call_with_its_concurrency_and_its_contexts(host: GuestHost) -> None:
    async def one_fails(request: pb.AskRequest) -> pb.AskResponse:
        failure = pb.Failure(reason=pb.FAILURE_REASON_TOO_LONG, message="the prompt is too long")
        return pb.AskResponse(slots=[pb.Slot(text="yes"), pb.Slot(failure=failure)])

    host.answer = one_fails
    code = "r = llm_batch(['a', 'b'], max_concurrent=3, contexts=[None, {'k': 1}])\nprint(r, failed(r[1]), r[1].reason)"
    assert (await host.run(code)).stdout == "['yes', 'Error: the prompt is too long'] True too_long\n"
    (request,) = host.asked
    assert request.max_concurrent == 3
    assert not request.questions[0].HasField("context")
    assert request.questions[1].context.kind == pb.CONTEXT_KIND_JSON
    assert request.questions[1].context.data == b'{"k": 1}'


async def test_large_prompts_and_answers_pass_whole(host: GuestHost) -> None:
    ran = await host.run("text = 'é' * 10_000_000\nllm_query(text) == text")
    assert ran.stdout == "True\n"


async def test_a_host_that_fails_the_call_raises_in_the_cell(host: GuestHost) -> None:
    async def broken(request: pb.AskRequest) -> pb.AskResponse:
        raise RuntimeError("a bug of the host")

    host.answer = broken
    assert (await host.run("llm_query('q')")).ended.error.type_name == "SubcallFailed"

    async def short(request: pb.AskRequest) -> pb.AskResponse:
        return texts()

    host.answer = short
    assert (await host.run("llm_query('q')")).ended.error.type_name == "SubcallFailed"


async def test_asks_in_flight_are_cancelled_when_their_cell_ends(host: GuestHost) -> None:
    host.answer = never
    code = (
        "import threading, time\nheard = []\n"
        "def ask():\n    try: llm_query('late')\n    except SubcallFailed as e: heard.append(e.reason)\n"
        "t = threading.Thread(target=ask); t.start()\n"
        "while not asked(): time.sleep(0.001)"
    )
    await host.run(f"import os\ndef asked(): return os.path.exists({str(host.folder / 'asked')!r})")

    async def mark(request: pb.AskRequest) -> pb.AskResponse:
        (host.folder / "asked").touch()
        return await never(request)

    host.answer = mark
    assert (await host.run(code)).status == "OK"
    await host.cancelled.wait()
    assert (await host.run("t.join(); heard")).stdout == "['ended']\n"


async def test_a_cell_that_ends_with_all_calls_in_flight_is_told_at_once(host: GuestHost) -> None:
    all_here = asyncio.Event()

    async def wait(request: pb.AskRequest) -> pb.AskResponse:
        if len(host.asked) == 64:
            all_here.set()
        return await never(request)

    host.answer = wait
    code = (
        "import threading, time\n"
        "for n in range(64): threading.Thread(target=llm_query, args=(str(n),), daemon=True).start()\n"
        "while True:\n    time.sleep(0.01)"
    )
    host.start(code)
    await all_here.wait()
    host.interrupt()
    assert (await host.end()).status == "INTERRUPTED"


async def test_a_thread_that_asks_while_its_cell_ends_is_not_left_waiting(host: GuestHost) -> None:
    host.answer = never
    code = (
        "import threading\nstop = False\n"
        "def ask():\n    while not stop:\n        try: llm_query('late')\n        except SubcallFailed: pass\n"
        "threads = [threading.Thread(target=ask, daemon=True) for _ in range(20)]\n"
        "for t in threads: t.start()"
    )
    assert (await host.run(code)).status == "OK"
    host.answer = echo
    ran = await host.run("stop = True\nfor t in threads: t.join()")
    assert ran.status == "OK"


async def test_closing_low_descriptors_harms_nothing_but_the_cells_own_output(host: GuestHost) -> None:
    ran = await host.run("import os; os.closerange(0, 20); x = 1")
    assert ran.status == "OK"
    assert (await host.run("print(x)")).stdout == "1\n"


async def test_a_forged_report_on_the_control_socket_is_the_workers_end_or_its_own_lie(host: GuestHost) -> None:
    forge = (
        "import os, socket, struct, json\n"
        "def forge(message):\n"
        "    body = json.dumps(message).encode()\n"
        "    for fd in range(3, 1100):\n"
        "        try: s = socket.socket(fileno=os.dup(fd)); s.send(struct.pack('!II', len(body), 0) + body)\n"
        "        except OSError: pass\n"
    )
    for message in (
        {"op": "ended", "cell": 10**9},
        {"op": "ended", "cell": -1, "status": "ok"},
        {"op": "ask", "id": 1, "max_concurrent": 0, "questions": []},
        {"op": "ask", "id": 1, "max_concurrent": 1, "questions": [[10**9, "", 0]]},
        {"op": "ask", "id": [], "max_concurrent": 1, "questions": "x"},
        {"op": "cell"},
    ):
        ran = await host.run(f"{forge}forge({message!r})\nwhile True: pass")
        assert (ran.status, ran.cause) == ("WORKER_DIED", "PROTOCOL"), message
    assert host.asked == []
    assert (await host.run("1 + 1")).stdout == "2\n"


async def test_a_final_forged_on_a_descriptor_is_only_output(host: GuestHost) -> None:
    ran = await host.run("import os\nos.write(1, b'FINAL(42)\\n')\nos.write(2, b'FINAL_VAR(x)')\nprint('FINAL(1)')")
    assert (ran.status, ran.final) == ("OK", None)


async def test_output_between_cells_belongs_to_no_cell(host: GuestHost) -> None:
    await host.run(
        "import os, subprocess\nr, w = os.pipe()\n"
        "p = subprocess.Popen(['sh', '-c', 'read x; echo late; echo late >&2; kill -STOP $$'], stdin=subprocess.PIPE)"
    )
    # The child has written when it is seen stopped, and that is before the third cell begins.
    await host.run("p.stdin.write(b'\\n'); p.stdin.flush(); os.waitpid(p.pid, os.WUNTRACED);")
    ran = await host.run("print('mine'); p.kill()")
    assert (ran.stdout, ran.stderr) == ("mine\n", "")


async def test_a_context_is_read_from_beside_the_socket_and_again_after_a_death() -> None:
    async with guest_host() as host:
        (host.folder / "ctx").write_text("hello " * 1000)
        await host.open(kind=pb.CONTEXT_KIND_TEXT, file_name="ctx", size_bytes=6000, variable="context")
        assert (await host.run("len(context)")).stdout == "6000\n"
        await host.run("context = None; import os; os._exit(0)")
        assert (await host.run("len(context)")).stdout == "6000\n"
        (host.folder / "more").write_text('{"k": 1}')
        await host.open(kind=pb.CONTEXT_KIND_JSON, file_name="more", size_bytes=8, variable="more")
        assert (await host.run("len(context), more")).stdout == "(6000, {'k': 1})\n"


async def test_same_user_code_cannot_look_into_the_agent(host: GuestHost) -> None:
    assert host.agent is not None
    if os.getuid() == 0:
        pytest.skip("root may look into anything: the image's tests try this as the sandbox's user")
    ran = await host.run(f"open('/proc/{host.agent.pid}/environ').read()")
    assert ran.ended.error.type_name == "PermissionError"


async def test_the_worker_has_nothing_of_the_agents(host: GuestHost) -> None:
    code = (
        "import os, sys\nsockets = 0\n"
        "for fd in os.listdir('/proc/self/fd'):\n"
        "    try: sockets += os.readlink(f'/proc/self/fd/{fd}').startswith('socket:')\n"
        "    except OSError: pass\n"
        "print(sockets, 'grpc' in sys.modules, [n for n in os.environ if n.startswith(('RLM_', 'GRPC_'))])\n"
        "print(os.nice(0), open('/proc/self/oom_score_adj').read().strip())"
    )
    assert (await host.run(code)).stdout == "2 False []\n5 1000\n"
