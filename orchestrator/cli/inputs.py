"""What a person points at (files, folders, patterns, standard input), as the context that the code will see."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import stat
import sys
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from orchestrator.errors import InvalidInput

_SNIFFED_BYTES = 8192
_STDIN = Path("-")
FOLDER_NOTE = "(versions, caches or dependencies)"
_SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".bzr", ".jj", "CVS", "__pycache__", "node_modules", ".venv", ".tox"}
    | {".mypy_cache", ".ruff_cache", ".pytest_cache"}
)


class ContextFormat(StrEnum):
    AUTO = "auto"  # text, and one file is not read before the code touches it
    TEXT = "text"
    JSON = "json"
    LINES = "lines"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a folder count. A pattern without a slash is matched with a name, others with the path below it.

    Files that are named themselves always count.
    """

    include: tuple[str, ...] = ()  # none: all files
    exclude: tuple[str, ...] = ()  # also folders, with all that is in them

    def takes(self, below: Path) -> bool:
        return not self.include or _matches(below, self.include)

    def leaves_out(self, below: Path) -> bool:
        return _matches(below, self.exclude)


def _matches(below: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(str(below) if "/" in each else below.name, each) for each in patterns)


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Gathered:
    """`context` is None when nothing was pointed at; `skipped` says, for a person, what was left out and why."""

    context: object | None
    files: int = 0
    skipped: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()  # of all that was found, also of what was left out since it is no text

    def refuse_to_overwrite(self, path: Path) -> None:
        """Raises `InvalidInput` when writing to `path` would destroy what was pointed at."""
        try:
            target = path.stat()
        except OSError:
            return  # it is not there yet, or whoever opens it will say why it cannot be
        for each in self.paths:
            try:
                found = os.fstat(sys.stdin.fileno()) if each == _STDIN else each.stat()
            except (OSError, ValueError):
                continue
            if os.path.samestat(found, target):
                raise InvalidInput(
                    "--record", f"{path} is one of the inputs, and would be overwritten.", "Name another file."
                )


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    path: Path
    named: bool  # by the person, not found in a folder


def gather(arguments: Sequence[str], form: ContextFormat, selection: Selection = EVERYTHING) -> Gathered:
    """One file or stdin gives its content, anything more a dict of path to content.

    Raises `InvalidInput` for what does not exist, cannot be read, or does not have the form asked for.
    """
    if not arguments:
        return Gathered(None)
    if arguments.count("-") > 1:
        raise InvalidInput("-", "standard input can be read once only.", "Give `-` once.")
    skipped: list[str] = []
    found: list[_Found] = []
    several = len(arguments) > 1
    for argument in arguments:
        if argument == "-":
            found.append(_Found("-", _STDIN, named=True))
            continue
        path = Path(argument)
        if path.is_dir():
            several = True
            found.extend(_walk(path, selection, skipped))
        elif path.exists():
            found.append(_Found(argument, path, named=True))
        else:
            for match in _expand(argument):
                # As when the shell expands it. What `**` matches has the content of all folders already.
                if match.is_dir() and "**" not in argument:
                    several = True
                    found.extend(_walk(match, selection, skipped))
                elif match.is_file():
                    found.append(_Found(str(match), match, named=False))
    unique = {each.name: each for each in found}
    paths = tuple(each.path for each in unique.values())
    if len(unique) > 1:
        several = True
    if not several:
        (only,) = unique.values()
        return Gathered(_lazily(only) if form is ContextFormat.AUTO else _read(only, form), 1, tuple(skipped), paths)
    if form is ContextFormat.BYTES:
        raise InvalidInput(
            "--context-format", "bytes takes one file.", "Give one file, or leave the format out for a dict of texts."
        )
    contents: dict[str, object] = {}
    for each in unique.values():
        content = _read(each, form)
        if content is None:
            skipped.append(f"{each.name} (not text)")
        else:
            contents[each.name] = content
    if not contents:
        raise InvalidInput(
            "FILE", f"there is no text file in {', '.join(arguments)}.", "Point at files that hold text."
        )
    return Gathered(contents, len(contents), tuple(skipped), paths)


def _expand(pattern: str) -> list[Path]:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not any(match.is_file() or (match.is_dir() and "**" not in pattern) for match in matches):
        rule = "matches no file." if glob.has_magic(pattern) else "no such file or folder."
        raise InvalidInput(pattern, rule, f"Check the path; it is looked for from {Path.cwd()}.")
    return matches


def has_unread_input() -> bool:
    """Whether something waits on standard input: a program that reads none of it should say so."""
    try:
        descriptor = sys.stdin.fileno()
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            return found.st_size > 0
        if not stat.S_ISFIFO(found.st_mode):
            return False
        waiting = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    except (OSError, ValueError, AttributeError):
        return False
    return int.from_bytes(waiting, sys.byteorder) > 0


def _walk(folder: Path, selection: Selection, skipped: list[str]) -> Iterator[_Found]:
    def refuse(error: OSError) -> None:
        skipped.append(f"{error.filename} ({error.strerror})")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in sorted(_SKIPPED_FOLDERS.intersection(folders)):
            if name != "__pycache__":  # what Python leaves in each folder is no news
                skipped.append(f"{Path(parent, name)}/ {FOLDER_NOTE}")
        inside = Path(parent).relative_to(folder)
        folders[:] = sorted(name for name in set(folders) - _SKIPPED_FOLDERS if not selection.leaves_out(inside / name))
        for name in sorted(files):
            path = Path(parent, name)
            if selection.leaves_out(inside / name) or not selection.takes(inside / name):
                continue  # as asked for, so not worth telling
            # A link may lead out of the folder that was pointed at; a FIFO would block.
            if path.is_symlink() or not path.is_file():
                skipped.append(f"{path} (not a regular file)")
            else:
                yield _Found(str(path), path, named=False)


def _lazily(found: _Found) -> object:
    """A file's path, for the store to read without holding it in memory; standard input's text."""
    if found.name == "-" or not found.path.is_file():
        return _read(found, ContextFormat.TEXT)
    try:
        with found.path.open("rb") as file:
            beginning = file.read(_SNIFFED_BYTES)
    except OSError as error:
        raise _unreadable(found, error) from error
    if b"\0" in beginning:
        raise _not_text(found)
    return found.path


def _read(found: _Found, form: ContextFormat) -> object | None:
    """The content in the form asked for; None for a file from a folder that is not text."""
    try:
        data = sys.stdin.buffer.read() if found.name == "-" else found.path.read_bytes()
    except OSError as error:
        raise _unreadable(found, error) from error
    if form is ContextFormat.BYTES:
        return data
    try:
        if b"\0" in data[:_SNIFFED_BYTES]:
            raise _not_text(found)
        text = data.decode()
    except (UnicodeDecodeError, InvalidInput):
        if found.named:
            raise _not_text(found) from None
        return None
    match form:
        case ContextFormat.LINES:
            return text.splitlines()
        case ContextFormat.JSON:
            try:
                value: object = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InvalidInput(
                    found.name, f"is not JSON ({error}).", "Correct it, or leave --context-format out."
                ) from error
            return value
        case _:
            return text


def _unreadable(found: _Found, error: OSError) -> InvalidInput:
    return InvalidInput(found.name, f"cannot be read: {error.strerror}.", "Check the path and your rights to it.")


def _not_text(found: _Found) -> InvalidInput:
    return InvalidInput(found.name, "is not UTF-8 text.", "Use --context-format bytes to hand it over as bytes.")
