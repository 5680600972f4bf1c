"""The demo's question, and its answer computed directly, without any model, to check the run against."""

from __future__ import annotations

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


def library_source() -> Path:
    """The folder of the Python standard library's source, which every machine with Python has."""
    return Path(sysconfig.get_paths()["stdlib"])


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
