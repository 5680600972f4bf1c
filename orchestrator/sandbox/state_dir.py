"""The directory that holds the sockets and contexts of live sandboxes, and the records of whose they are.

::

    <state>/              0700, ours
      id                  names this directory in container labels: reclaim touches nobody else's containers
      owners/<owner>      one per orchestrator process, locked (flock) by it as long as it lives
      s/<owner>-<n>/      0711; mounted read-only as /rlm in one container
        host.sock         0666
        context           0644, a hard link or a copy
      s/<owner>-contexts/ 0700; one owner's contexts at rest, gone with their owner
      notes/              what a reaper did, until somebody is told

All names are ours: nothing that a container says becomes part of a path, and no container can write here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orchestrator.errors import InvalidInput
from orchestrator.sandbox.forks import not_for_children

SOCKET_NAME = "host.sock"
CONTEXT_NAME = "context"
SOCKET_PATH_MAX = 107  # sun_path holds 108 bytes with the final NUL, unix(7)
_NAME_LENGTH = len("abcdefgh-12345678")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class OwnerRecord(msgspec.Struct, frozen=True):
    """Who a process was, for people who read the file; whether it lives is told by its lock alone."""

    pid: int
    start_ticks: int  # field 22 of /proc/<pid>/stat, proc(5)
    boot_id: str


@dataclass(frozen=True, slots=True)
class StateDir:
    """A checked state directory. Made by `open_state_dir`."""

    path: Path
    id: str

    @property
    def owners(self) -> Path:
        return self.path / "owners"

    @property
    def sandboxes(self) -> Path:
        return self.path / "s"

    @property
    def notes(self) -> Path:
        return self.path / "notes"

    def owner_of(self, sandbox_dir_name: str) -> str:
        return sandbox_dir_name.partition("-")[0]

    def make_sandbox_dir(self, name: str) -> Path:
        path = self.sandboxes / name
        path.mkdir(mode=0o700)
        # The container's user is another than ours: it may pass through to names that it knows, and list nothing.
        path.chmod(0o711)
        return path

    def make_context_dir(self, owner: str) -> Path:
        path = self.sandboxes / f"{owner}-contexts"
        path.mkdir(mode=0o700)
        return path

    def remove_sandbox_dir(self, name: str) -> None:
        shutil.rmtree(self.sandboxes / name, ignore_errors=True)

    def sandbox_names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.sandboxes) if entry.is_dir(follow_symlinks=False))

    def owner_is_dead(self, owner: str) -> bool:
        """Whether the process with this record is gone. An owner without a record is dead: records go last."""
        if not _is_plain_name(owner):
            return False
        try:
            descriptor = os.open(self.owners / owner, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def dead_owners(self) -> list[str]:
        return [name for name in sorted(os.listdir(self.owners)) if self.owner_is_dead(name)]

    def forget_owner(self, owner: str) -> None:
        (self.owners / owner).unlink(missing_ok=True)

    def leave_note(self, owner: str, text: str) -> None:
        (self.notes / owner).write_text(text, "utf-8")

    def take_notes(self) -> list[str]:
        """The notes that nobody has taken yet. Of two processes that ask at once, one gets each."""
        texts = []
        for path in sorted(self.notes.iterdir()):
            try:
                text = path.read_text("utf-8", "replace")
                path.unlink()
            except FileNotFoundError:
                continue
            texts.append(text)
        return texts


def open_state_dir(path: Path) -> StateDir:
    """Makes it, or checks the one that is there.

    Raises `InvalidInput` when it is not ours alone, is too long for a socket's path, or cannot be made.
    """
    path = path.absolute()
    longest = os.fsencode(path / "s" / ("x" * _NAME_LENGTH) / SOCKET_NAME)
    if len(longest) > SOCKET_PATH_MAX:
        raise InvalidInput(
            "state_dir",
            f"is too long: a socket's path in it would have {len(longest)} bytes, and {SOCKET_PATH_MAX} is the most.",
            "Set RLM_STATE_DIR to a shorter path.",
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ours(path)
        for name in ("owners", "s", "notes"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        return StateDir(path, _read_or_make_id(path / "id"))
    except OSError as error:
        raise InvalidInput(
            "state_dir", f"{path} cannot be used: {error.strerror}.", "Set RLM_STATE_DIR to a directory of your own."
        ) from error


@contextmanager
def owner_record(state: StateDir) -> Iterator[str]:
    """Registers this process as an owner for the block, and yields its name.

    The record is left in place on exit: whoever has removed all that the owner had calls `forget_owner`.
    """
    name = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    # Locked before it has its name: a record that can be found unlocked is one of the dead.
    partial = state.owners / f".{name}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, msgspec.json.encode(_own_record()))
        partial.rename(state.owners / name)
        with not_for_children(descriptor):
            yield name
    finally:
        os.close(descriptor)


def _own_record() -> OwnerRecord:
    # The command's name may hold spaces and parentheses: fields count from the last one, proc(5).
    fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return OwnerRecord(pid=os.getpid(), start_ticks=int(fields[19]), boot_id=boot_id)


def _check_ours(path: Path) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InvalidInput(
            "state_dir", f"{path} is not a directory of this user.", "Set RLM_STATE_DIR to a directory of your own."
        )
    if found.st_mode & 0o077:
        raise InvalidInput(
            "state_dir",
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}).",
            f"Run: chmod 700 {path}",
        )


def _read_or_make_id(path: Path) -> str:
    fresh = secrets.token_hex(8)
    partial = path.with_name(f".id-{fresh}")
    partial.write_text(fresh, "ascii")
    try:
        # Two processes may come at once: the link is made by one of them, and both read its content.
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()
    return path.read_text("ascii").strip()


def _is_plain_name(name: str) -> bool:
    return bool(name) and all(character in _ALPHABET for character in name)
