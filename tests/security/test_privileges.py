"""P: what the code is and may, exactly as in `image_golden.toml`, and with the hardening off more than that."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sandbox.policy import load_policy
from tests.security.arena import Arena
from tests.security.conftest import Found
from tests.security.control import Control, open_control

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

GOLDEN = tomllib.loads((Path(__file__).parent / "image_golden.toml").read_text("utf-8"))
_WALK = (
    "import os, stat\nfound = []\nfor root, dirs, files in os.walk('/'):\n"
    "    dirs[:] = [d for d in dirs if os.path.join(root, d) not in ('/proc', '/sys')]\n"
)
SETUID = _WALK + (
    "    for name in files:\n        path = os.path.join(root, name)\n"
    "        if os.lstat(path).st_mode & 0o6000 and not os.path.islink(path): found.append(path)\nprint(sorted(found))"
)
WRITABLE = _WALK + (
    "    probe = os.path.join(root, 'probe')\n"
    "    try:\n        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY)); os.unlink(probe); found.append(root)\n"
    "    except OSError: pass\n"
    "print(sorted(f for f in found if not f.startswith(('/tmp/', '/dev/shm/'))))"
)
DEVICES = _WALK + (
    "    for name in files:\n        path = os.path.join(root, name)\n"
    "        mode = os.lstat(path).st_mode\n"
    "        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode): found.append(path)\n"
    "print(sorted(f for f in found if not f.startswith('/dev/pts')))"
)
SOCKETS = _WALK + (
    "    for name in files:\n        path = os.path.join(root, name)\n"
    "        if stat.S_ISSOCK(os.lstat(path).st_mode): found.append(path)\nprint(sorted(found))"
)
STATUS = (
    "lines = dict(line.rstrip().split(':', 1) for line in open('/proc/self/status'))\n"
    "print({name: ' '.join(lines.get(name, '').split()) for name in ('Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm', "
    "'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp')})"
)
SECRETS = (
    "import glob\nfor path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
    "    try: print(open(path).read().replace(chr(0), ' '))\n    except OSError: pass"
)


def golden(arena: Arena, name: str) -> Any:
    return GOLDEN.get("gvisor", {}).get(name, GOLDEN[name]) if arena.gvisor else GOLDEN[name]


async def lines_of(arena: Arena) -> dict[str, str]:
    said: dict[str, str] = eval(await arena.says(STATUS), {"__builtins__": {}})
    return said


async def test_P1_no_setuid_file(roomy: Arena, control: Control, found: Found) -> None:
    assert await roomy.says(SETUID) == str(golden(roomy, "setuid_files"))
    plant = "import os, shutil\nshutil.copy('/bin/sh', '/var/planted'); os.chmod('/var/planted', 0o4755)\n"
    assert await control.says(plant + SETUID) == "['/var/planted']"
    found("none")


async def test_P2_NoNewPrivs_is_set(roomy: Arena, control: Control, found: Found) -> None:
    status = await lines_of(roomy)
    assert status["NoNewPrivs"] == ("" if roomy.gvisor and not status["NoNewPrivs"] else "1")
    assert "'NoNewPrivs': '0'" in await control.says(STATUS)
    if roomy.gvisor:
        found(f"{status['NoNewPrivs'] or 'not told'}; its kernel drops setuid")
    else:
        assert status["Seccomp"] == "2"
        found("1")


async def test_P3_all_capability_sets_are_empty(roomy: Arena, control: Control, found: Found) -> None:
    status = await lines_of(roomy)
    sets = {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if status[name]}
    assert sets == {golden(roomy, "capabilities")}
    assert f"'CapEff': '{GOLDEN['capabilities']}'" not in await control.says(STATUS)
    found("0")


async def test_P4_the_user_and_the_group_are_nobodys_and_no_other_sandboxs(
    roomy: Arena, control: Control, found: Found
) -> None:
    users, policy = golden(roomy, "users"), load_policy()
    assert [policy.users.value.first, policy.users.value.count] == users
    status = await lines_of(roomy)
    [user] = set(status["Uid"].split())
    assert int(user) in policy.users.value
    assert set(status["Gid"].split()) == {user}
    assert set(status["Groups"].split()) <= {user}
    async with roomy.sandboxes.open(None, None) as another:
        others = eval((await another.run(STATUS)).stdout.text, {"__builtins__": {}})
    assert user not in others["Uid"].split() + others["Gid"].split()
    assert "'Uid': '0 0 0 0'" in await control.says(STATUS)
    found("its own, from 0x70000000")


async def test_P5_writable_places_are_those_of_the_golden_file(roomy: Arena, control: Control, found: Found) -> None:
    writable = golden(roomy, "writable")
    assert await roomy.says(WRITABLE) == str(writable)
    assert "'/etc'" in await control.says(WRITABLE)
    found(" ".join(writable))


async def test_P7_no_engine_socket(roomy: Arena, sandbox_image: str, found: Found) -> None:
    assert await roomy.says(SOCKETS) == str(golden(roomy, "engine_sockets"))
    async with open_control(sandbox_image, "--volume=/var/run/docker.sock:/tmp/docker.sock:ro") as control:
        assert await control.says(SOCKETS) == "['/tmp/docker.sock']"
    found("none")


async def test_P8_the_cgroup_tree_is_its_own_and_read_only(roomy: Arena, sandbox_image: str, found: Found) -> None:
    look = (
        "paths = {line.rstrip().rpartition(':')[2] for line in open('/proc/self/cgroup')}\n"
        "mounts = [line.split() for line in open('/proc/self/mounts') if ' cgroup' in line]\n"
        "print(sorted(paths), all('ro' in mount[3].split(',') for mount in mounts))"
    )
    said = await roomy.says(look)
    if roomy.gvisor:
        assert said == "[] True", "this gVisor has groups: are they its own kernel's, or the host's?"
        found("none")
    else:
        assert said == "['/'] True"
        found("/, read-only")
    async with open_control(sandbox_image, "--cgroupns=host") as control:
        assert "/docker" in (opened := await control.says(look)) or ".slice" in opened


async def test_P9_devices_are_those_of_the_golden_file(roomy: Arena, sandbox_image: str, found: Found) -> None:
    devices = golden(roomy, "devices")
    assert await roomy.says(DEVICES) == str(devices)
    async with open_control(sandbox_image, "--device=/dev/loop-control:/dev/more") as control:
        assert "'/dev/more'" in await control.says(DEVICES)
    found(f"{len(devices)} harmless ones")


async def test_P11_no_secret_in_the_environment_or_on_a_command_line(
    roomy: Arena, sandbox_image: str, found: Found
) -> None:
    said = await roomy.says(SECRETS)
    assert "python" in said
    for word in ("OPENAI", "API_KEY", "sk-", "TOKEN", "SECRET"):
        assert word not in said
    async with open_control(sandbox_image, "--env=OPENAI_API_KEY=sk-inside") as control:
        assert "sk-inside" in await control.says(SECRETS)
    found("none")
