"""R: attacks on what a sandbox shares with its neighbors: contained, named by their cause, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import LossCause, SandboxLost
from orchestrator.values import CellResult, CellStatus, DeathCause
from tests.security.arena import Arena
from tests.security.conftest import Found

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


def out_of_memory(outcome: CellResult | SandboxLost) -> bool:
    """gVisor's kernel is what the host kills; the engine then sees a container killed, and not of what."""
    match outcome:
        case SandboxLost(cause=LossCause.OUT_OF_MEMORY):
            return True
        case SandboxLost(cause=LossCause.EXITED, detail=detail):
            return "status 137" in detail
        case CellResult(death=death) if death is not None:
            return death.cause is DeathCause.OUT_OF_MEMORY
    return False


def ended(outcome: CellResult | SandboxLost) -> str:
    """The cause as the enum's word."""
    if isinstance(outcome, SandboxLost):
        return f"sandbox lost: {outcome.cause}"
    return f"{outcome.status}: {outcome.death.cause}" if outcome.death else str(outcome.status)


async def test_R1_fork_bomb_hits_the_pid_limit(small: Arena, found: Found) -> None:
    outcome = await small.attack(
        "import errno, os, signal, time\nchildren = []\ntry:\n    while True:\n        child = os.fork()\n"
        "        if child == 0:\n            time.sleep(60); os._exit(0)\n        children.append(child)\n"
        "except OSError as error:\n    print(errno.errorcode[error.errno], len(children) < 256)\n"
        "for child in children: os.kill(child, signal.SIGKILL); os.waitpid(child, 0)",
    )
    if isinstance(outcome, CellResult):
        assert outcome.stdout.text == "EAGAIN True\n"
    else:
        assert small.gvisor, outcome
    found("EAGAIN" if isinstance(outcome, CellResult) else ended(outcome))


async def test_R2_thread_bomb_hits_the_pid_limit(small: Arena, found: Found) -> None:
    outcome = await small.attack(
        "import threading\nstop = threading.Event()\nthreads = []\ntry:\n    while True:\n"
        "        thread = threading.Thread(target=stop.wait); thread.start(); threads.append(thread)\n"
        "except RuntimeError as error:\n    print(len(threads) < 256)\nstop.set()",
    )
    if isinstance(outcome, CellResult):
        assert outcome.stdout.text == "True\n"
    else:
        assert small.gvisor, outcome
    found("EAGAIN" if isinstance(outcome, CellResult) else ended(outcome))


async def test_R3_memory_bomb_is_a_typed_death(small: Arena, found: Found) -> None:
    """The kernel chooses the worker, by its score, and not the agent: a fresh worker is there afterwards."""
    outcome = await small.attack("hoard = []\nwhile True: hoard.append(bytearray(b'x' * 4_000_000))")
    assert out_of_memory(outcome), outcome
    assert small.gvisor or isinstance(outcome, CellResult)
    found(ended(outcome))


async def test_R4_many_small_mappings_end_in_ENOMEM_or_at_the_memory_limit(small: Arena, found: Found) -> None:
    outcome = await small.attack(
        "import ctypes, mmap\nhoard = []\ntry:\n    while True:\n        hoard.append(mmap.mmap(-1, 4096, "
        "prot=mmap.PROT_READ if len(hoard) % 2 else mmap.PROT_READ | mmap.PROT_WRITE))\n"
        "except OSError as error:\n    print(error.errno, len(hoard) > 100)\nhoard.clear()",
        60,
    )
    assert out_of_memory(outcome) or (isinstance(outcome, CellResult) and outcome.stdout.text == "12 True\n"), outcome
    found("ENOMEM" if not out_of_memory(outcome) else ended(outcome))


async def test_R5_memory_that_is_not_touched_costs_nothing(small: Arena, found: Found) -> None:
    code = "import mmap\nbig = mmap.mmap(-1, 1 << 34)\nprint(len(big) >> 30)\nbig.close()"
    assert await small.says(code) == "16"
    found("costs nothing")


@pytest.mark.parametrize(("path", "mib"), [("/tmp/fill", 16), ("/dev/shm/fill", 64)], ids=["tmp", "shm"])
async def test_R7_R8_a_filled_disk_is_ENOSPC_and_no_more(small: Arena, path: str, mib: int, found: Found) -> None:
    outcome = await small.attack(
        f"import errno, os\nfile = open({path!r}, 'wb', buffering=0)\n"
        "try:\n    while True: file.write(bytes(1 << 20))\n"
        f"except OSError as error: print(errno.errorcode[error.errno], os.path.getsize({path!r}) <= {mib} << 20)\n"
        f"os.unlink({path!r}); file.close()",
    )
    if isinstance(outcome, CellResult) and outcome.death is None:
        assert outcome.stdout.text == "ENOSPC True\n"
        found("ENOSPC")
    else:
        # This gVisor has no sizes of tmpfs: the container's memory limit is what ends it.
        assert small.gvisor, outcome
        assert out_of_memory(outcome), outcome
        found(ended(outcome))


async def test_R9_inodes_run_out_before_the_hosts_memory(small: Arena, found: Found) -> None:
    outcome = await small.attack(
        "import errno, os\nmade = 0\ntry:\n    while made < 70_000:\n"
        "        os.close(os.open(f'/tmp/{made}', os.O_CREAT | os.O_WRONLY)); made += 1\n"
        "    print('UNLIMITED')\n"
        "except OSError as error: print(errno.errorcode[error.errno], made <= 65536)\n"
        "for number in range(made): os.unlink(f'/tmp/{number}')",
        60,
    )
    if isinstance(outcome, CellResult) and outcome.death is None and outcome.stdout.text != "UNLIMITED\n":
        if small.gvisor and outcome.status is CellStatus.TIMED_OUT:
            found(ended(outcome))
            return
        assert outcome.stdout.text == "ENOSPC True\n", outcome
        found("ENOSPC")
    else:
        assert small.gvisor, outcome
        found("no limit of its own; they count as memory")


async def test_R10_a_sparse_file_of_a_pebibyte_takes_no_space(small: Arena, found: Found) -> None:
    said = await small.says(
        "import errno, os\nfile = open('/tmp/sparse', 'wb')\n"
        "try: file.truncate(1 << 50); print('blocks', os.stat('/tmp/sparse').st_blocks)\n"
        "except OSError as error: print(errno.errorcode[error.errno])\nfile.close(); os.unlink('/tmp/sparse')"
    )
    # gVisor tells a file's blocks by its size; had it taken them, the memory limit would have ended the sandbox.
    assert said in ("blocks 0", "EFBIG", "EINVAL", "ENOSPC") or (small.gvisor and said.startswith("blocks"))
    found("takes none" if said.startswith("blocks") else said)


async def test_R11_fallocate_cannot_reserve_more_than_there_is(small: Arena, found: Found) -> None:
    said = await small.says(
        "import errno, os\nfile = os.open('/tmp/big', os.O_CREAT | os.O_RDWR)\n"
        "try: os.posix_fallocate(file, 0, 1 << 40); print('RESERVED')\n"
        "except OSError as error: print(errno.errorcode[error.errno])\nos.close(file); os.unlink('/tmp/big')"
    )
    assert said in ("ENOSPC", "EFBIG", "ENOSYS", "EOPNOTSUPP", "EPERM")
    found(said)


async def test_R12_directories_10000_deep_can_be_made_and_go_with_the_sandbox(small: Arena, found: Found) -> None:
    outcome = await small.attack(
        "import os, errno\nos.chdir('/tmp')\ntry:\n    for depth in range(10_000): os.mkdir('d'); os.chdir('d')\n"
        "except OSError as error: print(errno.errorcode[error.errno])\nprint(depth)\nos.chdir('/')",
        60,
    )
    if small.gvisor and isinstance(outcome, SandboxLost):
        assert out_of_memory(outcome), outcome
        found(ended(outcome))
        return
    # All of them, or as many as a limit of the sandbox lets be.
    assert isinstance(outcome, CellResult), outcome
    said = outcome.stdout.text.split()
    assert said == ["9999"] or said[:-1] in (["ENOSPC"], ["ENOMEM"], ["ENAMETOOLONG"]), outcome
    assert outcome.death is None
    found("10,000" if said == ["9999"] else said[0])


async def test_R14_a_hoard_of_full_pipes_ends_at_the_open_files(small: Arena, found: Found) -> None:
    outcome = await small.attack(
        "import errno, fcntl, os\npipes = []\ntry:\n    while True:\n        r, w = os.pipe(); pipes += [r, w]\n"
        "        os.set_blocking(w, False)\n        try:\n            while True: os.write(w, bytes(65536))\n"
        "        except BlockingIOError: pass\n"
        "except OSError as error: print(errno.errorcode[error.errno], len(pipes) <= 1024)\n"
        "for each in pipes: os.close(each)",
        60,
    )
    assert out_of_memory(outcome) or (isinstance(outcome, CellResult) and outcome.stdout.text == "EMFILE True\n")
    found(ended(outcome) if out_of_memory(outcome) else "EMFILE")


@pytest.mark.parametrize("descriptor", [1, 2], ids=["stdout", "stderr"])
async def test_R15_R16_a_flood_of_output_is_cut_and_counted(small: Arena, descriptor: int, found: Found) -> None:
    result = await small.result(f"import os\nfor _ in range(1_000): os.write({descriptor}, b'x' * 50_000)", 60)
    captured = result.stdout if descriptor == 1 else result.stderr
    assert result.status is CellStatus.OK
    assert captured.total_bytes == 50_000_000
    assert len(captured.head) + len(captured.tail) == 2 * 32_768
    found("64 KiB of 50 MB kept")


async def test_R18_output_that_is_no_text_is_shown_as_such(small: Arena, found: Found) -> None:
    result = await small.result("import os\nos.write(1, b'a\\x00b\\xff\\xfec')")
    assert result.stdout.text.startswith("a\0b\ufffd\ufffdc")
    found("U+FFFD")


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
        "10 ** 10 ** 9",
        "import time; time.sleep(3600)",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
    ],
    ids=["R20-spin", "R21-regex", "R21-power", "R22-sleep", "R23-no-sigint", "R24-no-sigterm"],
)
async def test_R20_R21_R22_R23_R24_a_cell_over_its_time_ends(small: Arena, code: str, found: Found) -> None:
    result = await small.result(code, 0.5)
    assert result.status in (CellStatus.TIMED_OUT, CellStatus.WORKER_DIED)
    if result.death is not None:
        assert result.death.cause is DeathCause.TIMED_OUT
    found(ended(result))


async def test_R26_a_daemon_that_outlives_its_cell_is_heard_whole_and_ends_with_the_sandbox(
    small: Arena, found: Found
) -> None:
    """It has the worker's descriptors, so what it prints is the sandbox's output: no more of it, and no later."""
    async with small.sandboxes.open(None, None) as attacked:
        user = (await attacked.run("import os; os.getuid()")).stdout.text.strip()
        await attacked.run(
            "r, w = os.pipe()\nended, end = os.pipe()\n"
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
            "        os.close(w); os.close(ended); os.read(r, 1); os.write(1, b'DAEMON'); os.close(end)\n"
            "        import time; time.sleep(3600)\n    os._exit(0)\nos.wait(); os.close(r); os.close(end)"
        )
        result = await attacked.run("os.write(w, b'!'); os.read(ended, 1); os.write(1, b' and mine')")
        assert result.status is CellStatus.OK
        assert result.stdout.text.startswith("DAEMON and mine")
        assert result.stdout.total_bytes == len(result.stdout.text)
        assert (await attacked.run("print('alone')")).stdout.text == "alone\n"
        there = _processes_of(user)
    if not small.gvisor:  # whose processes are its own kernel's
        assert there >= 3, "the agent, the worker and the daemon"
        await small.sandboxes._removals._tasks.drain(30)
        assert _processes_of(user) == 0
    found("its sandbox's output; ends with the sandbox")


def _processes_of(user: str) -> int:
    count = 0
    for entry in Path("/proc").iterdir():
        try:
            count += entry.name.isdecimal() and f"Uid:\t{user}\t" in (entry / "status").read_text()
        except OSError:
            continue  # it has ended
    return count


async def test_R27_a_thread_that_prints_after_its_cell_does_not_corrupt_the_next(small: Arena, found: Found) -> None:
    attacked = (await small._sandboxes())[0]
    await attacked.run(
        "import threading\ngo, done = threading.Event(), threading.Event()\n"
        "def late():\n    go.wait(); print('LATE ' * 100_000); done.set()\n"
        "threading.Thread(target=late, daemon=True).start()"
    )
    await attacked.run("go.set()")
    result = await attacked.run("done.wait(); 6 * 7")
    assert result.status is CellStatus.OK
    assert result.stdout.text.endswith("42\n")
    found("contained")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def down(n): return down(n + 1)\ndown(0)", "RecursionError"),
        (
            "import sys, threading\nsys.setrecursionlimit(10**9)\nclass A: pass\n"
            "x = []\nfor _ in range(1_000_000): x = [x]\nprint(len(repr(x)))",
            "",
        ),
    ],
    ids=["python", "c-stack"],
)
async def test_R29_deep_recursion_is_an_error_or_a_crash_of_the_worker_alone(
    small: Arena, code: str, name: str, found: Found
) -> None:
    outcome = await small.attack(code)
    if name:
        assert isinstance(outcome, CellResult)
        assert outcome.error is not None
        assert outcome.error.type_name == name
    else:
        assert (small.gvisor and out_of_memory(outcome)) or isinstance(outcome, CellResult), outcome
        assert isinstance(outcome, SandboxLost) or outcome.status in (CellStatus.ERROR, CellStatus.WORKER_DIED)
    found(ended(outcome))


@pytest.mark.parametrize(
    ("code", "cause", "number"),
    [
        ("import os; os._exit(7)", DeathCause.EXITED, 7),
        ("import os; os.abort()", DeathCause.CRASHED, 6),
        ("import ctypes; ctypes.string_at(0)", DeathCause.CRASHED, 11),
    ],
    ids=["exit", "abort", "segfault"],
)
async def test_R30_a_worker_that_dies_is_told_by_its_cause(
    small: Arena, code: str, cause: DeathCause, number: int, found: Found
) -> None:
    result = await small.result(code)
    assert result.status is CellStatus.WORKER_DIED
    assert result.death is not None
    assert (result.death.cause, result.death.code) == (cause, number)
    found(ended(result))


async def test_R33_a_huge_traceback_is_cut(small: Arena, found: Found) -> None:
    result = await small.result("raise ValueError('x' * 50_000_000)", 60)
    assert result.status is CellStatus.ERROR
    assert result.error is not None
    assert len(result.error.message) + len(result.error.traceback) < 2 << 20
    found("cut")


async def test_R39_no_core_dump_is_written(small: Arena, found: Found) -> None:
    said = await small.says(
        "import os, resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))\nchild = os.fork()\n"
        "if child == 0:\n    os.chdir('/tmp'); os.abort()\nstatus = os.waitpid(child, 0)[1]\n"
        "print(os.WCOREDUMP(status), [name for name in os.listdir('/tmp') if 'core' in name])"
    )
    assert said == "(0, 0)\nFalse []"
    found("limit 0")
