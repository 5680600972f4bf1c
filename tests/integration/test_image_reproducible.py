"""The sandbox image's build: the same inputs give the same bytes, and no work is done twice.

Needs a Docker engine, its command, and uv beside the interpreter, all of which ``make setup engine`` provides. Only the
slim variant is built: the full one differs in the number of its files, not in how they come about.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "sandbox_image"

# What the engine itself puts into every container, at the time that it makes it.
OF_THE_ENGINE = {".dockerenv", "etc/hosts", "etc/hostname", "etc/mtab", "etc/resolv.conf", "etc"}

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(300)]


class Entry(NamedTuple):
    """One file of an image, as far as anything that runs in it can tell."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    modified_s: int
    link: str
    sha256: str


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package as an installation has it, whose images no other test, run or user has."""
    copy = tmp_path / "sandbox_image"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "guest" / "main.py").open("a", encoding="utf-8") as program:
        program.write(f"# {uuid.uuid4().hex}\n")
    return copy


@pytest.fixture
def tags() -> Iterator[tuple[str, str]]:
    """Two names for images, which go when the test ends."""
    names = (f"rlm-sandbox-test:{uuid.uuid4().hex}", f"rlm-sandbox-test:{uuid.uuid4().hex}")
    yield names
    subprocess.run(["docker", "rmi", "--force", *names], check=False, capture_output=True)


def test_two_builds_from_the_same_inputs_have_the_same_content(package: Path, tags: tuple[str, str]) -> None:
    for tag in tags:
        assert "built in" in build(package, "--no-cache", "--tag", tag)
    first, second = (contents(tag) for tag in tags)
    assert first.keys() == second.keys()
    assert {name: (entry, second[name]) for name, entry in first.items() if entry != second[name]} == {}
    assert any(name.endswith(".pyc") for name in first), "the comparison must cover bytecode, which varies most easily"
    files = {name: entry for name, entry in first.items() if entry.kind == tarfile.REGTYPE}
    assert [name for name, entry in files.items() if entry.mode & 0o6000] == [], "files that change their user"


def test_an_image_is_built_again_only_for_other_inputs(package: Path, tags: tuple[str, str]) -> None:
    assert "built in" in build(package, "--tag", tags[0])
    assert "up to date" in build(package, "--tag", tags[1])
    assert image_id(tags[0]) == image_id(tags[1])

    extra = package / "extra.txt"
    extra.write_text(f"{made_wheel(package)}\n", encoding="utf-8")
    assert "built in" in build(package, "--tag", tags[1], "--extra", str(extra))
    added = {"opt/rlm/site/of_ones_own.py", "opt/rlm/site/__pycache__/of_ones_own.cpython-311.pyc"}
    assert added <= contents(tags[1]).keys() - contents(tags[0]).keys()


def test_an_image_that_somebody_has_made_from_ours_is_not_taken_for_it(
    package: Path, tags: tuple[str, str], tmp_path: Path
) -> None:
    build(package, "--tag", tags[0])
    ours = image_id(tags[0])
    folder = tmp_path / "derived"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {tags[0]}\nCOPY Dockerfile /opt/\n", encoding="utf-8")
    docker("build", "--quiet", "--tag", tags[1], str(folder))
    assert image_id(tags[1]) != ours
    assert "up to date" in build(package, "--tag", tags[0])
    assert image_id(tags[0]) == ours


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["medium"], "unknown argument: medium"),
        (["--extra", "/does/not/exist.txt"], "--extra /does/not/exist.txt cannot be read"),
    ],
)
def test_a_wrong_argument_is_named(package: Path, arguments: list[str], reason: str) -> None:
    finished = run_build(package, arguments)
    assert finished.returncode == 1
    assert reason in finished.stderr


def made_wheel(folder: Path) -> Path:
    """A library of one module, so that installing it asks no package index."""
    wheel = folder / "of_ones_own-1.0-py3-none-any.whl"
    about = "of_ones_own-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("of_ones_own.py", "ANSWER = 42\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: of-ones-own\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{about}/RECORD", f"of_ones_own.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n"
        )
    return wheel


def build(package: Path, *arguments: str) -> str:
    """Builds the slim variant; returns what the script said."""
    finished = run_build(package, ["slim", *arguments])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def run_build(package: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    uv = Path(sys.executable).with_name("uv")
    environment = os.environ | {"PYTHON": sys.executable, "UV": str(uv) if uv.exists() else "uv"}
    return subprocess.run(
        [str(package / "build.sh"), *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )


def image_id(tag: str) -> str:
    return docker("image", "inspect", "--format", "{{.Id}}", tag)


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def contents(tag: str) -> dict[str, Entry]:
    """Every file of an image by its name; its container is created for that and never started."""
    container = docker("create", "--network", "none", tag)
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
            assert export.stdout is not None
            with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
                return {
                    member.name: _entry(archive, member)
                    for member in archive
                    if member.name.rstrip("/") not in OF_THE_ENGINE
                }
    finally:
        docker("rm", "--force", container)


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    file = archive.extractfile(member) if member.isreg() else None
    digest = hashlib.sha256(file.read()).hexdigest() if file else ""
    # The engine makes these anew in each container.
    modified = 0 if member.name.split("/")[0] in {"dev", "proc", "sys"} else int(member.mtime)
    owner = (member.uid, member.gid)
    return Entry(member.type, member.mode, owner, modified, member.linkname, digest)
