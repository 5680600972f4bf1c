"""Contexts at rest: one file each, written once, read by any number of sandboxes, never sent over the wire."""

from __future__ import annotations

import asyncio
import codecs
import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import InvalidInput
from orchestrator.json_shape import shape_of
from orchestrator.sandbox.json_stream import pieces_of, type_name_of
from orchestrator.values import Attachment, Context, ContextInfo, ContextKind

_PIECE = 4 * 1024 * 1024
_SHOWN = 300  # characters of head, and of tail
_SNIFFED = 1024 * 1024
_FICLONE = 0x40049409  # ioctl_ficlone(2)


class _Stopped(Exception):
    """The caller has gone away while a thread was writing for it."""


class FileContextStore:
    """A `ContextStore` in one directory of ours. Writing is in threads, atomic, and leaves nothing when it fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                "state_dir", f"{directory} cannot be made: {error.strerror}.", "Set RLM_STATE_DIR."
            ) from error

    async def put(self, value: object) -> Context:
        """See `ContextStore.put`. A file is cloned where the file system can, else copied: its owner may change it."""
        match value:
            case str():
                return await self._write(lambda write: _write_text(value, write))
            case bytes() | bytearray() | memoryview():
                return await self._write(lambda write: _write_bytes(bytes(value), write))
            case Path():
                return await self._write(lambda write: _write_file(value, write))
            case _:
                return await self._write(lambda write: _write_json(value, write))

    async def put_attachment(self, attachment: Attachment) -> Context:
        """See `ContextStore.put_attachment`."""
        match attachment.kind:
            case ContextKind.TEXT:
                return await self._write(lambda write: _write_utf8(attachment.data, write))
            case ContextKind.JSON:
                return await self._write(lambda write: _write_document(attachment.data, write))
            case ContextKind.BYTES:
                return await self._write(lambda write: _write_bytes(attachment.data, write))

    async def read_text(self, context: Context, limit_bytes: int) -> str:
        """See `ContextStore.read_text`."""
        if context.info.size_bytes > limit_bytes:
            raise InvalidInput(
                "context",
                f"has {context.info.size_bytes:,} bytes; at most {limit_bytes:,} fit into a plain model's prompt.",
                "Split it, or raise max_depth so that the sub-call has a REPL.",
            )
        return await asyncio.to_thread(_text_of, context)

    async def drop(self, context: Context) -> None:
        """See `ContextStore.drop`."""
        await asyncio.to_thread(context.path.unlink, missing_ok=True)

    async def _write(self, fill: Callable[[_Writer], ContextInfo]) -> Context:
        stop = threading.Event()
        work = asyncio.ensure_future(asyncio.to_thread(self._write_now, fill, stop))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({work})
            if not work.cancelled() and work.exception() is None:
                work.result().path.unlink(missing_ok=True)
            raise

    def _write_now(self, fill: Callable[[_Writer], ContextInfo], stop: threading.Event) -> Context:
        name = secrets.token_hex(8)
        partial, path = self._directory / f".{name}", self._directory / name
        try:
            with partial.open("xb") as file:
                info = fill(_Writer(file, stop))
            partial.chmod(0o644)  # sandboxes have it by hard link, and their user is another
            partial.rename(path)
        except OSError as error:
            raise _storage_failure(error, self._directory) from error
        finally:
            partial.unlink(missing_ok=True)
        return Context(path, info)


def _text_of(context: Context) -> str:
    data = context.path.read_bytes()
    if context.info.kind is not ContextKind.BYTES:
        return data.decode("utf-8", "replace")
    try:
        if b"\0" not in data:
            return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise InvalidInput(
        "context",
        "is bytes that are no text, and a plain model reads nothing else.",
        "Decode it, or raise max_depth so that the sub-call has a REPL.",
    )


class _Writer:
    """The file being written; gives up when nobody waits for it any more."""

    def __init__(self, file: BinaryIO, stop: threading.Event) -> None:
        self.file = file
        self._stop = stop

    def __call__(self, piece: bytes | memoryview) -> int:
        if self._stop.is_set():
            raise _Stopped
        return self.file.write(piece)


def _write_text(text: str, write: _Writer) -> ContextInfo:
    size = 0
    for start in range(0, len(text), _PIECE):
        try:
            size += write(text[start : start + _PIECE].encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InvalidInput(
                "context",
                f"holds half of a surrogate pair at character {start + error.start:,}, which UTF-8 cannot.",
                "Encode it with errors='replace'.",
            ) from None
    return _info(ContextKind.TEXT, "str", size, len(text), "characters", text[:_SHOWN], text[-_SHOWN:])


def _write_utf8(data: bytes, write: _Writer) -> ContextInfo:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput("context", f"is not UTF-8 at byte {error.start:,}.") from None
    write(data)
    return _info(ContextKind.TEXT, "str", len(data), len(text), "characters", text[:_SHOWN], text[-_SHOWN:])


def _write_bytes(data: bytes, write: _Writer) -> ContextInfo:
    view = memoryview(data)
    for start in range(0, len(data), _PIECE):
        write(view[start : start + _PIECE])
    head, tail = repr(data[:_SHOWN])[:_SHOWN], repr(data[-_SHOWN:])[-_SHOWN:]
    return _info(ContextKind.BYTES, "bytes", len(data), len(data), "bytes", head, tail)


def _write_json(value: object, write: _Writer) -> ContextInfo:
    size, head, tail = 0, b"", b""
    for piece in pieces_of(value):
        size += write(piece)
        if len(head) < 4 * _SHOWN:
            head += piece[: 4 * _SHOWN]
        tail = (tail + piece[-4 * _SHOWN :])[-4 * _SHOWN :]
    length, unit = _length(value, size)
    return _info(ContextKind.JSON, type_name_of(value), size, length, unit, _shown(head), _shown_end(tail))


def _write_document(data: bytes, write: _Writer) -> ContextInfo:
    shape = shape_of(data)
    write(data)
    head, tail = _shown(data[: 4 * _SHOWN]), _shown_end(data[-4 * _SHOWN :])
    return _info(ContextKind.JSON, shape.type_name, len(data), shape.length, shape.unit, head, tail)


def _write_file(source: Path, write: _Writer) -> ContextInfo:
    with _open_regular(source) as file:
        _clone_or_copy(file, write)
        size = os.fstat(write.file.fileno()).st_size
    with open(write.file.name, "rb") as copy:
        return _describe_file(copy, size, write)


def _describe_file(copy: BinaryIO, size: int, write: _Writer) -> ContextInfo:
    sniffed = copy.read(_SNIFFED)
    if not _is_text(sniffed, size > len(sniffed)):
        copy.seek(max(0, size - _SHOWN))
        head, tail = repr(sniffed[:_SHOWN])[:_SHOWN], repr(copy.read())[-_SHOWN:]
        return _info(ContextKind.BYTES, "bytes", size, size, "bytes", head, tail)
    copy.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    length, head, tail = 0, "", ""
    for piece in _pieces(copy):
        text = decoder.decode(piece)
        length += len(text)
        if len(head) < _SHOWN:
            head += text[:_SHOWN]
        tail = (tail + text[-_SHOWN:])[-_SHOWN:]
        write(b"")
    rest = decoder.decode(b"", final=True)
    length, tail = length + len(rest), (tail + rest)[-_SHOWN:]
    return _info(ContextKind.TEXT, "str", size, length, "characters", head[:_SHOWN], tail)


def _open_regular(source: Path) -> BinaryIO:
    try:
        # A FIFO would block an ordinary open until somebody writes to it.
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput("context", f"{source} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput("context", f"{source} is not a regular file.", "Give a file, or the text itself.")
    return os.fdopen(descriptor, "rb")


def _clone_or_copy(source: BinaryIO, write: _Writer) -> None:
    try:
        fcntl.ioctl(write.file.fileno(), _FICLONE, source.fileno())
    except OSError:
        # Not this file system, or two of them.
        for piece in _pieces(source):
            write(piece)
        write.file.flush()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _is_text(data: bytes, cut: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(data, final=not cut)
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _length(value: object, size: int) -> tuple[int, str]:
    match value:
        case list() | tuple():
            return len(value), "items"
        case dict():
            return len(value), "keys"
        case _:
            return size, "characters"


def _shown(data: bytes) -> str:
    return data.decode("utf-8", "ignore")[:_SHOWN]


def _shown_end(data: bytes) -> str:
    return data.decode("utf-8", "ignore")[-_SHOWN:]


def _info(kind: ContextKind, type_name: str, size: int, length: int, unit: str, head: str, tail: str) -> ContextInfo:
    # All of a short one is in its head.
    shown_whole = len(head) < _SHOWN or (head == tail and size <= _SHOWN)
    return ContextInfo(
        kind=kind,
        type_name=type_name,
        size_bytes=size,
        length=length,
        unit=unit,
        head=head,
        tail="" if shown_whole else tail,
    )


def _storage_failure(error: OSError, directory: Path) -> InvalidInput:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InvalidInput(
            "context",
            f"does not fit on the disk of {directory}.",
            "Free some space, or set RLM_STATE_DIR to a larger disk.",
        )
    return InvalidInput("context", f"cannot be written to {directory}: {error.strerror}.", "Set RLM_STATE_DIR.")
