"""Values as what a server stores: a kind, and bytes that can be read any number of times."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.values import ContextKind
from orchestrator.wire.caps import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Content:
    """`source` is a file that is read in chunks, or the bytes themselves."""

    kind: ContextKind
    source: Path | bytes
    size_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Blocks on the disk. Raises `InvalidInput` when the file is no longer there."""
        if isinstance(self.source, bytes):
            for start in range(0, len(self.source), CHUNK_BYTES):
                yield self.source[start : start + CHUNK_BYTES]
            return
        yield from _file_chunks(self.source)

    def sha256(self) -> bytes:
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.digest()


def content_of(value: object) -> Content:
    """What the library takes for a context: str, bytes, a `Path` of a file, or what JSON can hold.

    A file is text when all of it is UTF-8, else bytes. Blocks on the disk. Raises `InvalidInput`.
    """
    match value:
        case str():
            return _held(ContextKind.TEXT, _encoded(value))
        case bytes() | bytearray() | memoryview():
            return _held(ContextKind.BYTES, bytes(value))
        case Path():
            return _file(value)
        case _:
            return _held(ContextKind.JSON, _document(value))


def _held(kind: ContextKind, data: bytes) -> Content:
    return Content(kind, data, len(data))


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            "context",
            f"holds half of a surrogate pair at character {error.start:,}, which UTF-8 cannot.",
            "Encode it with errors='replace'.",
        ) from None


def _document(value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            "context", f"is no str, bytes or Path, and JSON cannot hold it: {error}.", "Convert it first."
        ) from None


def _file(path: Path) -> Content:
    decoder = codecs.getincrementaldecoder("utf-8")()
    kind, size = ContextKind.TEXT, 0
    if path.exists() and not path.is_file():
        raise InvalidInput("context", f"{path} is not a regular file.", "Give a file, or its content.")
    for chunk in _file_chunks(path):
        size += len(chunk)
        if kind is ContextKind.TEXT:
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                kind = ContextKind.BYTES
    if kind is ContextKind.TEXT:
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            kind = ContextKind.BYTES
    return Content(kind, path, size)


def _file_chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise InvalidInput("context", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
