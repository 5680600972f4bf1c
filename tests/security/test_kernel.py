"""K: attacks on the kernel. An errno and not a kill, since ordinary libraries try some of these.

Each is tried in a control container too, where the door must be open: there it is `ALLOWED`, or fails of its arguments.
gVisor answers system calls itself: what it allows happens in its own kernel, and never in the host's.
"""

from __future__ import annotations

import signal

import pytest

from tests.security.arena import Arena
from tests.security.conftest import Found
from tests.security.control import IN_A_CHILD, Control, open_control

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

SHUT = {"EPERM", "ENOSYS", "EACCES", "ENOENT", "EROFS", "ENOTSUP", "EAFNOSUPPORT", "ESOCKTNOSUPPORT"} | {
    "EPROTONOSUPPORT"
}
NONE: frozenset[str] = frozenset()
NOT_HERE = "not on this kernel"
PRELUDE = (
    "import ctypes, errno, os, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "def call(*arguments):\n    ctypes.set_errno(0)\n"
    "    if libc.syscall(*map(ctypes.c_long, arguments)) >= 0: return 'ALLOWED'\n"
    "    return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))\n"
    "def attempt(action):\n    try: action()\n    except OSError as error: return errno.errorcode[error.errno]\n"
    "    return 'ALLOWED'\n"
)


class Doors:
    """Tries a door in the sandbox and in the control container."""

    def __init__(self, arena: Arena, control: Control, found: Found) -> None:
        self.arena = arena
        self.control = control
        self.found = found

    async def shut(
        self, attack: str, *, emulated: bool = False, control: str | None = "", unknown: frozenset[str] = NONE
    ) -> None:
        """`attack` is an expression; `emulated`: gVisor may allow it, in its own kernel.

        `control` is what the open door says, by default anything but `SHUT`; None: nothing can open it safely.
        `unknown` is what a kernel says that was built without what is behind the door; the table tells it.
        """
        code = f"{PRELUDE}print({attack})"
        said = await self.arena.says(f"{IN_A_CHILD}\nprint(in_a_child({code!r}))")
        if self.arena.gvisor and said not in SHUT:
            assert emulated, f"gVisor answers {said}"
            said = f"{said}, in gVisor's own kernel"
        else:
            assert said in SHUT
        if control is not None:
            opened = (await self.control.says(code)).split()[0]  # a clone of it may say it again
            if opened in unknown:
                said = f"{said}; {NOT_HERE}"
            else:
                assert opened == control if control else opened not in SHUT, f"the control run says {opened}"
        self.found(said)


@pytest.fixture
def doors(roomy: Arena, control: Control, found: Found) -> Doors:
    return Doors(roomy, control, found)


async def test_K1_mount(doors: Doors) -> None:
    mount = "libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)"
    await doors.shut(f"'ALLOWED' if {mount} == 0 else errno.errorcode[ctypes.get_errno()]", control="ALLOWED")


async def test_K2_umount(doors: Doors) -> None:
    # A name that is not there: an open door says so.
    target = "ctypes.addressof(ctypes.create_string_buffer(b'/proc/self/nothing'))"
    await doors.shut(f"call(166, {target}, 0).replace('ENOENT', 'LOOKED')", control="LOOKED", emulated=True)


async def test_K3_unshare_of_a_user_namespace(doors: Doors) -> None:
    await doors.shut("call(272, 0x10000000)", emulated=True, control="ALLOWED")


async def test_K4_clone_into_a_user_namespace(doors: Doors) -> None:
    await doors.shut("'ALLOWED' if call(56, 0x10000011, 0, 0, 0, 0) == 'ALLOWED' else call(272, 0x10000000)",
                     emulated=True, control="ALLOWED")  # fmt: skip


async def test_K4_clone3_is_ENOSYS_so_that_libraries_fall_back(doors: Doors) -> None:
    await doors.shut("call(435, 0, 0)", emulated=True, control="EINVAL")


async def test_K6_pivot_root_and_chroot(doors: Doors) -> None:
    await doors.shut("attempt(lambda: os.chroot('/'))", control="ALLOWED")
    await doors.shut("call(155, 0, 0)", emulated=True, control="EFAULT")


async def test_K7_ptrace_of_the_agent(doors: Doors) -> None:
    # PTRACE_SEIZE of process 1; the control's process 1 is its own parent, which root may trace.
    await doors.shut("call(0x65, 0x4206, 1, 0, 0)", control="ALLOWED")


async def test_K8_process_vm_readv_of_the_agent(doors: Doors) -> None:
    vector = "ctypes.addressof((ctypes.c_ulong * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8))"
    await doors.shut(f"call(310, 1, {vector}, 1, {vector}, 1, 0)", emulated=True)


async def test_K7_K8_the_agents_memory_environment_and_descriptors_cannot_be_opened(doors: Doors) -> None:
    for name in ("mem", "environ", "fd"):
        action = "os.listdir('/proc/1/fd')" if name == "fd" else f"open('/proc/1/{name}', 'rb').read(1)"
        attack = f"attempt(lambda: {action}).replace('EIO', 'ALLOWED')"
        await doors.shut(attack, control="ALLOWED", emulated=True)
    if doors.arena.gvisor:
        # Known, and told as a weakness by the self-check: its /proc does not heed PR_SET_DUMPABLE.
        doors.found("**not held**: readable, see above")


async def test_K10_keyctl_and_add_key(doors: Doors) -> None:
    await doors.shut("call(250, 0, -3, 0)")
    await doors.shut("call(248, 0, 0, 0, 0, 0)", control="EFAULT")


async def test_K11_bpf(doors: Doors) -> None:
    await doors.shut("call(321, 0, 0, 0)", control="EINVAL")


async def test_K12_perf_event_open(doors: Doors) -> None:
    await doors.shut("call(298, 0, 0, -1, -1, 0)", control="EFAULT", emulated=True)


async def test_K14_io_uring_setup(doors: Doors) -> None:
    await doors.shut("call(425, 1, 0)", control="EFAULT", emulated=True)


async def test_K15_AF_ALG(doors: Doors) -> None:
    await doors.shut("attempt(lambda: socket.socket(38, 5))", control="ALLOWED", unknown=frozenset(("EAFNOSUPPORT",)))


async def test_K16_AF_VSOCK(doors: Doors) -> None:
    await doors.shut("attempt(lambda: socket.socket(40, 1))", control="ALLOWED", unknown=frozenset(("EAFNOSUPPORT",)))


async def test_K17_packet_and_raw_sockets(doors: Doors) -> None:
    await doors.shut("attempt(lambda: socket.socket(17, 3))", control="ALLOWED")
    await doors.shut("attempt(lambda: socket.socket(2, 3, 1))", control="ALLOWED")


async def test_K18_AF_NETLINK(doors: Doors) -> None:
    await doors.shut("attempt(lambda: socket.socket(16, 3))", control="ALLOWED", emulated=True)


async def test_K20_kexec_and_init_module(doors: Doors) -> None:
    # One byte that is no module; more segments than there may be.
    module = "call(175, ctypes.addressof(ctypes.create_string_buffer(1)), 1, 0)"
    await doors.shut(module, control="ENOEXEC", unknown=frozenset(("ENOSYS",)))
    await doors.shut("call(246, 0, 1 << 20, 0, 0)", control="EINVAL", unknown=frozenset(("ENOSYS",)))


async def test_K21_personality_without_address_randomization(doors: Doors) -> None:
    await doors.shut("call(135, 0x0040000)", emulated=True, control="ALLOWED")


async def test_K22_calls_of_the_i386_ABI(doors: Doors) -> None:
    # mov eax, 20 (getpid); int 0x80; ret. The door is open when it gives this process's id.
    machine_code = "b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3'"
    attack = (
        "(lambda m: (m.write(" + machine_code + "), (lambda pid: 'ALLOWED' if pid == os.getpid() else "
        "errno.errorcode.get(-pid, 'EPERM'))(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof("
        "ctypes.c_char.from_buffer(m)))()))[1])(__import__('mmap').mmap(-1, 4096, prot=7))"
    )
    # The profile cannot answer an errno here: see its comment.
    # gVisor reads the number as one of the 64-bit ABI, where 20 is writev.
    said = await doors.arena.says(f"{IN_A_CHILD}\nprint(in_a_child({PRELUDE + f'print({attack})'!r}))")
    assert said in SHUT | {f"SIGNAL {signal.SIGSYS}"} | ({"EBADF", "EFAULT"} if doors.arena.gvisor else set())
    opened = await doors.control.says(f"{PRELUDE}print({attack})")
    # A kernel without these calls ends their caller by SIGSEGV.
    assert opened in ("ALLOWED", f"SIGNAL {signal.SIGSEGV}")
    said = "the caller ends by SIGSYS" if said.startswith("SIGNAL") else said
    doors.found(said if opened == "ALLOWED" else f"{said}; {NOT_HERE}")


async def test_K22_calls_of_the_x32_ABI(doors: Doors) -> None:
    # getpid, with the bit that says x32. A kernel without that ABI says ENOSYS.
    attack = f"{PRELUDE}print(call(0x40000000 | 39))"
    said = await doors.arena.says(f"{IN_A_CHILD}\nprint(in_a_child({attack!r}))")
    assert said in SHUT | {f"SIGNAL {signal.SIGSYS}"}
    opened = await doors.control.says(attack)
    assert opened in ("ALLOWED", "ENOSYS")
    said = "the caller ends by SIGSYS" if said.startswith("SIGNAL") else said
    doors.found(said if opened == "ALLOWED" else f"{said}; {NOT_HERE}")


async def test_K24_open_by_handle_at(doors: Doors) -> None:
    await doors.shut("call(304, 0, 0, 0)", control="EFAULT")


async def test_K26_mknod_of_a_device(doors: Doors) -> None:
    attack = "attempt(lambda: (os.mknod('/dev/shm/disk', 0o60600, os.makedev(7, 0)), os.unlink('/dev/shm/disk')))"
    await doors.shut(attack, emulated=True, control="ALLOWED")


async def test_K28_TIOCSTI_finds_no_terminal(doors: Doors) -> None:
    attack = "attempt(lambda: __import__('fcntl').ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x'))"
    await doors.shut(f"{attack}.replace('ENXIO', 'ENOENT').replace('EIO', 'ENOENT')", control=None)


async def test_K28_TIOCSTI_finds_no_terminal_of_its_own_either(doors: Doors) -> None:
    attack = (
        "(lambda fcntl: attempt(lambda: (lambda pair: (os.setsid(), fcntl.ioctl(pair[1], 0x540E, 0), "
        "fcntl.ioctl(pair[1], 0x5412, b'x')))(os.openpty())))(__import__('fcntl'))"
    )
    await doors.shut(attack, control="ALLOWED")


@pytest.mark.parametrize(
    ("path", "opened"),
    [
        ("/proc/sys/kernel/core_pattern", "ALLOWED"),
        ("/proc/sysrq-trigger", "ALLOWED"),
        ("/sys/kernel/profiling", "ALLOWED"),
        ("/proc/sys/vm/overcommit_memory", "ALLOWED"),
    ],
    ids=["K29", "K31", "K36-sys", "K36-proc-sys"],
)
async def test_K29_K31_K36_the_hosts_switches_cannot_be_opened_for_writing(
    doors: Doors, path: str, opened: str
) -> None:
    # Opened only, and never written to: what it switches is the host's. /sys is read-only in the control too, until it
    # is mounted once more. Not every kernel has each.
    attack = (
        "(os.makedirs('/tmp/sys', exist_ok=True), libc.mount(b'sysfs', b'/tmp/sys', b'sysfs', 0, None), "
        f"attempt(lambda: os.open(('/tmp' if os.path.isdir('/tmp/sys/kernel') else '') + {path!r}, os.O_WRONLY)))[2]"
        if path.startswith("/sys/")
        else f"attempt(lambda: os.open({path!r}, os.O_WRONLY))"
    )
    await doors.shut(attack, control=opened, unknown=frozenset(("ENOENT",)))


async def test_K30_no_release_agent_of_a_cgroup_can_be_set(doors: Doors) -> None:
    # Also in a mount of its own, which the control can have: of version 1 or 2, whichever the host has.
    attack = (
        "(os.makedirs('/tmp/groups', exist_ok=True), "
        "libc.mount(b'cgroup', b'/tmp/groups', b'cgroup', 0, b'memory') and "
        "libc.mount(b'cgroup2', b'/tmp/groups', b'cgroup2', 0, None), "
        "next((said for top in ('/sys/fs/cgroup', '/tmp/groups') for root, _, files in os.walk(top) for name in files "
        "if name in ('release_agent', 'cgroup.procs', 'notify_on_release') "
        "for said in [attempt(lambda: os.close(os.open(os.path.join(root, name), os.O_WRONLY)))] "
        "if said == 'ALLOWED'), 'EROFS'))[2]"
    )
    await doors.shut(attack, control="ALLOWED", emulated=True)


async def test_K32_K38_what_tells_of_the_host_is_masked(doors: Doors, sandbox_image: str) -> None:
    readable = (
        "[path for path in ('/proc/kcore', '/proc/timer_list', '/proc/keys', '/proc/kmsg', '/dev/kmsg', "
        "'/proc/sched_debug', '/sys/firmware/memmap') if attempt(lambda: os.open(path, os.O_NONBLOCK)) == 'ALLOWED' "
        "and (os.path.isdir(path) and os.listdir(path) or os.path.isfile(path) and os.stat(path).st_mode & 0o444 "
        "and attempt(lambda: os.read(os.open(path, os.O_NONBLOCK), 1)) == 'ALLOWED' "
        "and os.read(os.open(path, os.O_NONBLOCK), 1))]"
    )
    await doors.shut(f"'ALLOWED' if {readable} else 'EACCES'", control="ALLOWED")
    addresses = "any(int(line.split()[0], 16) for line in open('/proc/kallsyms'))"
    symbols = f"'ALLOWED' if os.path.exists('/proc/kallsyms') and {addresses} else 'EACCES'"
    messages = "attempt(lambda: os.read(os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK), 8192))"
    # Both take one capability more, and the latter a device.
    async with open_control(sandbox_image, "--cap-add=SYSLOG", "--device=/dev/kmsg") as control:
        telling = Doors(doors.arena, control, doors.found)
        await telling.shut(symbols, control="ALLOWED", unknown=frozenset(("EACCES",)))
        await telling.shut(messages, control="ALLOWED")


async def test_K34_the_interpreter_cannot_be_overwritten(doors: Doors) -> None:
    # Without O_TRUNC, and closed at once: the control's copy stays whole.
    # A program that runs is busy for anybody; that it is not a matter of rights is what the control shows.
    for path, opened in (("/proc/self/exe", "ETXTBSY"), ("/opt/rlm/agent/main.py", "ALLOWED")):
        await doors.shut(f"attempt(lambda: os.open({path!r}, os.O_WRONLY))", control=opened)


async def test_K35_no_descriptor_of_the_agent_or_the_engine_is_inherited(
    roomy: Arena, control: Control, found: Found
) -> None:
    look = (
        "import os\nfor name in os.listdir('/proc/self/fd'):\n"
        "    try: print(os.readlink(f'/proc/self/fd/{name}').partition(':')[0].partition('[')[0])\n"
        "    except OSError: pass"
    )
    said = await roomy.says(look)
    assert "/etc/hostname" in (await control.says(f"kept = open('/etc/hostname')\n{look}")).split()
    # /dev/null, two pipes, the socket to the agent, and what this very look opens.
    kinds = said.split()
    allowed = {"/dev/null", "pipe", "socket", "anon_inode", "host", "/proc/self/fd"}
    assert all(kind in allowed or (kind.startswith("/proc/") and kind.endswith("/fd")) for kind in kinds), kinds
    assert kinds.count("socket") <= 2
    found(f"{len(kinds) - 1} of its own")


async def test_K39_swapon_reboot_settimeofday_and_quotactl(doors: Doors) -> None:
    # Wrong magic numbers, no file, an impossible time: an open door complains of these instead.
    await doors.shut("call(169, 0, 0, 0, 0)", control="EINVAL")
    await doors.shut("call(164, ctypes.addressof((ctypes.c_long * 2)(0, 1 << 40)), 0)", control="EINVAL")
    await doors.shut("call(167, 0, 0)", control="EFAULT")
    await doors.shut("call(179, 0x80000100, 0, 0, 0)", control="ALLOWED", unknown=frozenset(("ENOSYS",)))


async def test_K39_userfaultfd(doors: Doors) -> None:
    await doors.shut("call(323, 0)", control="ALLOWED")
