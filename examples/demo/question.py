"""The demo's question, and its answer computed directly, without any model, to check the run against."""

from __future__ import annotations

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

QUESTION = (
    "Which Python versions does this source code announce removals for, and how often? A passage is a line with the "
    "word 'removed' or 'removal' together with the line before and the line after it; decide for each passage which "
    "version it announces a removal for, if any. Answer one line a version, most passages first, as 'version: count'."
)

_WORD = re.compile(r"\bremov(?:ed|al)\b", re.IGNORECASE)
_ANNOUNCED = re.compile(r"remov\w*\s+(?:\w+\s+){0,3}?(?:in|from|by)\s+(?:Python\s+)?v?(3\.\d+)", re.IGNORECASE)


EXCLUDED = ("site-packages", "dist-packages")
ENOUGH_BYTES = 20_000_000


def source_folders() -> list[Path]:
    """Where tens of megabytes of Python source are, on every machine: the standard library's, and more if need be."""
    paths = sysconfig.get_paths()
    return enough_of(Path(paths["stdlib"]), Path(paths["purelib"]))


def enough_of(library: Path, packages: Path) -> list[Path]:
    """The library alone where it is large; Debian's is not, since it comes without its tests."""
    size = sum(path.stat().st_size for path in python_files(library))
    return [library] if size >= ENOUGH_BYTES else [library, packages]


def python_files(folder: Path) -> Iterator[Path]:
    """What `rlm ask FOLDER --include '*.py'`, without EXCLUDED, takes of a folder."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - {*EXCLUDED, "__pycache__"})
        for path in (Path(parent, name) for name in sorted(files) if name.endswith(".py")):
            if path.is_file() and not path.is_symlink():
                yield path


def read_sources(folders: list[Path]) -> dict[str, str]:
    """By path, as the code in the sandbox finds them; test data that is no UTF-8 text is left out there as well."""
    sources = {}
    for folder in folders:
        for path in python_files(folder):
            data = path.read_bytes()
            try:
                if b"\0" not in data[:8192]:
                    sources[str(path)] = data.decode()
            except UnicodeDecodeError:
                continue
    return sources


def announced_version(passage: str) -> str:
    """The version that a passage announces a removal for, or "none": what the scripted leaf model answers."""
    found = _ANNOUNCED.search(passage)
    return found.group(1) if found else "none"


def computed_answer(sources: Mapping[str, str]) -> str:
    """The answer as a plain loop over the whole text gives it."""
    counts = Counter(announced_version(passage) for text in sources.values() for passage in _passages(text))
    counts.pop("none", None)
    return as_answer(counts)


def as_answer(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(f"{version}: {count}" for version, count in ordered)


def _passages(text: str) -> Iterator[str]:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if _WORD.search(line):
            yield " ".join(part.strip() for part in lines[max(0, number - 1) : number + 2])
