"""Contexts that come in pieces: written as they come, checked against what they were announced as."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from orchestrator.errors import InvalidInput, RunNotReplayable, TooLarge
from orchestrator.hosting.orders import ContextHeader
from orchestrator.hosting.premises import Premises
from orchestrator.hosting.principals import Principal
from orchestrator.json_shape import shape_of_file
from orchestrator.store.contexts import ContextUpload
from orchestrator.store.database import MAX_RUN_BYTES
from orchestrator.store.failures import file_failure
from orchestrator.store.rows import StoredContext, StoredRun
from orchestrator.values import ContextInfo, ContextKind

_SHOWN = 300  # characters of head, and of tail
_SHA256_BYTES = 32
# A document is checked whole, by a process of its own.
MAX_JSON_BYTES = 512 * 1024 * 1024


async def receive(
    premises: Premises, header: ContextHeader, chunks: AsyncIterator[bytes], principal: Principal
) -> StoredContext:
    """Nothing stays of an upload that fails. Raises `InvalidInput`, `TooLarge`, `QuotaExceeded`, `StoreFailed`."""
    _check(header, premises.settings.max_upload_bytes)
    async with premises.storage(principal, header.size_bytes):
        return await _receive(premises, header, chunks, principal.name)


async def _receive(
    premises: Premises, header: ContextHeader, chunks: AsyncIterator[bytes], principal: str
) -> StoredContext:
    call = premises.threads.call
    upload = premises.store.new_upload()
    try:
        description = Description(header.kind)
        async for chunk in chunks:
            if upload.size + len(chunk) > header.size_bytes:
                raise InvalidInput("size_bytes", f"is {header.size_bytes:,}, and more than that came.")
            await call(_write, upload, description, chunk, premises)
        _check_whole(header, upload)
        info = await call(_finish, upload, description, premises)
        return await call(premises.store.keep_context, upload, principal, info)
    finally:
        await call(upload.discard)


async def receive_recording(premises: Premises, chunks: AsyncIterator[bytes], principal: Principal) -> StoredRun:
    """Raises `RunNotReplayable`, `InvalidInput`, `TooLarge`, `QuotaExceeded`, `StoreFailed`."""
    call = premises.threads.call
    upload = premises.store.new_upload()
    try:
        async with AsyncExitStack() as stack:
            async for chunk in chunks:
                if upload.size + len(chunk) > MAX_RUN_BYTES:
                    raise TooLarge("max_run_bytes", MAX_RUN_BYTES, upload.size + len(chunk))
                await stack.enter_async_context(premises.storage(principal, len(chunk)))
                await call(_write_plain, upload, chunk, premises)
            await call(_seal, upload, premises)
            try:
                return await call(premises.store.import_jsonl, upload.path, principal.name)
            except RunNotReplayable as error:  # the caller knows its file by another name
                raise RunNotReplayable(str(error).replace(str(upload.path), "the recording")) from None
    finally:
        await call(upload.discard)


class Description:
    """What a model will be told of it, found piece by piece."""

    def __init__(self, kind: ContextKind) -> None:
        self.kind = kind
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._size = 0
        self._length = 0
        self._head = self._tail = ""

    def add(self, data: bytes, *, final: bool = False) -> None:
        """Raises `InvalidInput` for text that is not UTF-8."""
        self._size += len(data)
        if self.kind is ContextKind.BYTES:
            text = data.decode("latin-1")
        else:
            try:
                text = self._decoder.decode(data, final)
            except UnicodeDecodeError as error:
                raise InvalidInput("chunk", f"is not UTF-8 ({error.reason}).", "Announce it as bytes.") from None
        self._length += len(text)
        self._head += text[: _SHOWN - len(self._head)] if len(self._head) < _SHOWN else ""
        self._tail = (self._tail + text[-_SHOWN:])[-_SHOWN:]

    def info(self, path: Path) -> ContextInfo:
        """`path` is where all of it is, looked at for JSON only. Raises `InvalidInput` for what is not JSON."""
        type_name, length, unit = "str", self._length, "characters"
        head, tail = self._head, self._tail if self._length > _SHOWN else ""
        match self.kind:
            case ContextKind.BYTES:
                type_name, unit = "bytes", "bytes"
                head = repr(head.encode("latin-1"))[:_SHOWN]
                tail = repr(tail.encode("latin-1"))[-_SHOWN:] if tail else ""
            case ContextKind.JSON:
                shape = shape_of_file(path)
                type_name, length, unit = shape.type_name, shape.length, shape.unit
            case ContextKind.TEXT:
                pass
        return ContextInfo(
            kind=self.kind, type_name=type_name, size_bytes=self._size, length=length, unit=unit, head=head, tail=tail
        )


def _check(header: ContextHeader, max_bytes: int) -> None:
    if header.size_bytes < 0 or len(header.sha256) != _SHA256_BYTES:
        raise InvalidInput("header", "needs a size of at least 0 and a SHA-256 of 32 bytes.")
    if header.size_bytes > max_bytes:
        raise TooLarge("max_upload_bytes", max_bytes, header.size_bytes, "Split it.")
    if header.kind is ContextKind.JSON and header.size_bytes > MAX_JSON_BYTES:
        raise TooLarge("max_json_bytes", MAX_JSON_BYTES, header.size_bytes, "Upload it as text.")


def _check_whole(header: ContextHeader, upload: ContextUpload) -> None:
    if upload.size != header.size_bytes:
        raise InvalidInput("size_bytes", f"is {header.size_bytes:,}, and {upload.size:,} came.", "Send it again.")
    if upload.sha256 != header.sha256.hex():
        raise InvalidInput("sha256", f"does not match: {upload.sha256} came.", "Send it again.")


def _write(upload: ContextUpload, description: Description, chunk: bytes, premises: Premises) -> None:
    description.add(chunk)
    with _named(premises):
        upload.write(chunk)


def _write_plain(upload: ContextUpload, chunk: bytes, premises: Premises) -> None:
    with _named(premises):
        upload.write(chunk)


def _seal(upload: ContextUpload, premises: Premises) -> None:
    with _named(premises):
        upload.seal()


def _finish(upload: ContextUpload, description: Description, premises: Premises) -> ContextInfo:
    description.add(b"", final=True)
    with _named(premises):
        upload.seal()
        return description.info(upload.path)


@contextmanager
def _named(premises: Premises) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise file_failure(error, premises.store.path) from error
