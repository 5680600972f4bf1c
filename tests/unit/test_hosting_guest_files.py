"""The guest's side of files: code may have put anything at any name, and none of it leads the agent astray."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.guest_modules import agent_files
from tests.unit.guest_modules import guest_messages as pb

_STATUSES = {number: name.removeprefix("FILE_STATUS_") for name, number in pb.FileStatus.items()}


def write(root: Path, path: str, data: bytes = b"new") -> str:
    ended = agent_files.write_file(str(root), pb.WriteFile(number=7, path=path, data=data))
    assert ended.number == 7
    assert ended.data == b""
    return _STATUSES[ended.status]


def read(root: Path, path: str) -> str | bytes:
    ended = agent_files.read_file(str(root), pb.ReadFile(number=7, path=path))
    assert ended.number == 7
    if ended.status == pb.FILE_STATUS_OK:
        return ended.data
    return _STATUSES[ended.status]


def test_a_file_is_written_with_its_folders_and_read_again(tmp_path: Path) -> None:
    assert write(tmp_path, "a/b/c.bin", bytes(range(256))) == "OK"
    assert read(tmp_path, "a/b/c.bin") == bytes(range(256))
    assert write(tmp_path, "a/b/c.bin", b"") == "OK"
    assert read(tmp_path, "a/b/c.bin") == b""
    assert os.listdir(tmp_path / "a" / "b") == ["c.bin"]


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", "./a", "a\0b", "x/" * 600 + "x"]
)
def test_a_path_that_is_not_plain_is_refused_here_too(tmp_path: Path, path: str) -> None:
    assert write(tmp_path, path) == "INVALID_PATH"
    assert read(tmp_path, path) == "INVALID_PATH"


def _link(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


def _dangling(path: Path) -> None:
    path.symlink_to("/tmp/nowhere-at-all")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("make", [_link, _dangling, os.mkfifo, Path.mkdir, _socket])
def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd")
    before = os.lstat(tmp_path / "odd")
    assert read(tmp_path, "odd") == "NOT_REGULAR"
    assert write(tmp_path, "odd") == "NOT_REGULAR"
    assert os.lstat(tmp_path / "odd") == before
    assert os.listdir(tmp_path) == ["odd"]


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "way").symlink_to(outside)
    assert read(root, "way/secret") == "NOT_REGULAR"
    assert write(root, "way/planted") == "NOT_REGULAR"
    assert os.listdir(outside) == ["secret"]


def test_a_file_over_the_cap_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(agent_files.FILE_CAP + 1)  # sparse
    assert read(tmp_path, "big") == "TOO_LARGE"
    os.truncate(tmp_path / "big", agent_files.FILE_CAP)
    data = read(tmp_path, "big")
    assert isinstance(data, bytes)
    assert len(data) == agent_files.FILE_CAP


def test_what_is_missing_or_in_the_way_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert read(tmp_path, "none") == "NOT_FOUND"
    assert read(tmp_path, "none/deeper") == "NOT_FOUND"
    assert read(tmp_path, "file/deeper") == "NOT_REGULAR"
    assert write(tmp_path, "file/deeper") == "NOT_REGULAR"
    assert write(tmp_path, "x" * 256) == "INVALID_PATH"


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(tmp_path, "kept", b"old") == "OK"
    real = os.write
    written: list[int] = []

    def full(descriptor: int, data: memoryview) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(real(descriptor, data[:3]))
        return written[0]

    monkeypatch.setattr(os, "write", full)
    assert write(tmp_path, "kept", b"a longer one") == "DISK_FULL"
    monkeypatch.undo()
    assert read(tmp_path, "kept") == b"old"
    assert os.listdir(tmp_path) == ["kept"]
