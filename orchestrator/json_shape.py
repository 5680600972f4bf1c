"""What a JSON document holds at its top level, found without building it: it may be large, and hostile.

Checking one is C code that holds the interpreter's lock to its end, so a large file is checked by a process of its own:
`python -m orchestrator.json_shape FILE`.
"""

from __future__ import annotations

import codecs
import mmap
import re
import subprocess
import sys
from pathlib import Path

import msgspec

from orchestrator.errors import InvalidInput

# A string whole, or one structural character. Possessive: a string is never tried another way, and so the engine need
# not remember, for each of its escapes, where it could go back to.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)
_SPACES = re.compile(rb"[ \t\r\n]*+")
_SPACE = b" \t\r\n"
# Counting is Python, token by token: a document with more of them is described by its bytes.
_MAX_TOKENS = 200_000
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")
_PIECE = 1 << 20
_BESIDE_BYTES = 4 << 20  # from here on by a process; below, the lock is held for less than its start takes
_TIMEOUT_S = 300.0  # for 512 MiB it takes a few seconds

Document = bytes | mmap.mmap


class Shape(msgspec.Struct, frozen=True):
    type_name: str
    length: int
    unit: str


class _Found(msgspec.Struct):
    """What the process says."""

    shape: Shape | None = None
    problem: str = ""


def shape_of(document: Document) -> Shape:
    """Raises `InvalidInput` when it is not a JSON document in UTF-8."""
    try:
        _check_utf8(document)
        # Raw checks the whole syntax, and builds nothing but a view of the bytes.
        msgspec.json.decode(document, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput("context", f"is not a JSON document ({error}).") from None
    start, end = _first(document, 0), _end(document)
    match document[start]:
        case 0x5B:  # [
            return _container(document, start, end, "list", "items")
        case 0x7B:  # {
            return _container(document, start, end, "dict", "keys")
        case 0x22:  # "
            return Shape("str", len(msgspec.json.decode(document, type=str)), "characters")
        case _:
            return Shape(type(msgspec.json.decode(document[start:end])).__name__, end - start, "characters")


def shape_of_file(path: Path) -> Shape:
    """Without holding this process up, whatever is in it. Raises `InvalidInput`, `OSError`."""
    if path.stat().st_size <= _BESIDE_BYTES:
        return shape_of(path.read_bytes())
    command = [sys.executable, "-I", "-m", __name__, str(path.absolute())]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True)
        found = msgspec.json.decode(done.stdout, type=_Found)
    except (subprocess.SubprocessError, msgspec.DecodeError) as error:
        raise InvalidInput("context", f"could not be checked as JSON ({error}).", "Give it as text.") from None
    if found.shape is None:
        raise InvalidInput("context", found.problem)
    return found.shape


def main() -> None:
    with (
        Path(sys.argv[1]).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as document,
    ):
        try:
            found = _Found(shape_of(document))
        except InvalidInput as error:
            found = _Found(None, error.rule)
        sys.stdout.buffer.write(msgspec.json.encode(found))


def _check_utf8(document: Document) -> None:
    """In pieces, between which other threads have their turn. Raises `InvalidInput`."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    for start in range(0, len(document), _PIECE):
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(document[start : start + _PIECE], start + _PIECE >= len(document))
        except UnicodeDecodeError as error:
            raise InvalidInput("context", f"is not UTF-8 at byte {start - kept + error.start:,}.") from None


def _container(document: Document, start: int, end: int, type_name: str, unit: str) -> Shape:
    first = _first(document, start + 1)
    if document[first] in _CLOSING:
        return Shape(type_name, 0, unit)
    depth, commas, starts = 0, 0, {document[first]}
    for count, token in enumerate(_TOKEN.finditer(document, start, end)):
        if count >= _MAX_TOKENS:
            return Shape(type_name, end - start, "bytes")
        character = document[token.start()]
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == ord(",") and depth == 1:
            commas += 1
            starts.add(document[_first(document, token.end())])
    if type_name == "list":
        type_name = {frozenset(b'"'): "list[str]", frozenset(b"{"): "list[dict]"}.get(frozenset(starts), "list")
    return Shape(type_name, commas + 1, unit)


def _first(document: Document, position: int) -> int:
    """Where the first character at or after a position is that is no space."""
    found = _SPACES.match(document, position)
    return found.end() if found is not None else position


def _end(document: Document) -> int:
    """Where the spaces at the end begin."""
    end = len(document)
    while end:
        piece = document[max(0, end - _PIECE) : end]
        kept = len(piece.rstrip(_SPACE))
        end -= len(piece) - kept
        if kept:
            break
    return end


if __name__ == "__main__":
    main()
