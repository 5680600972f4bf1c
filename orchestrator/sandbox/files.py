"""Files into and out of a sandbox, through its guest: what was asked for, and what came of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from orchestrator.errors import FileFailed, FileFailure, SandboxLost
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire, wire_out
from orchestrator.seams import MAX_FILE_BYTES

_MAX_NAME_BYTES = 255  # NAME_MAX of tmpfs, limits.h(0p)
_MAX_PATH_BYTES = 1024
_TIMEOUT_S = 30.0
_IN_FLIGHT = 2  # each may be MAX_FILE_BYTES in memory, here and in the guest

_DETAILS = {
    FileFailure.INVALID_PATH: "the guest does not take this path.",
    FileFailure.NOT_FOUND: "there is none.",
    FileFailure.NOT_REGULAR: "it, or a folder above it, is a link or something else that is no file.",
    FileFailure.TOO_LARGE: f"it has more than {MAX_FILE_BYTES:,} bytes. Cut it, or hand data over as a context.",
    FileFailure.DISK_FULL: "the sandbox has no room for it. Delete something in /tmp, or raise RLM_TMP_MIB.",
    FileFailure.NOT_PERMITTED: "the code has made it, or a folder above it, inaccessible.",
}


def check_path(path: str) -> None:
    """Raises `FileFailed` for a path that is not relative, of plain names with "/" between."""
    names = path.split("/")
    try:
        sizes = [len(name.encode("utf-8")) for name in names]
    except UnicodeEncodeError:
        raise FileFailed(FileFailure.INVALID_PATH, path, "it cannot be written in UTF-8.") from None
    if any(name in ("", ".", "..") for name in names) or not path.isprintable():
        raise FileFailed(
            FileFailure.INVALID_PATH,
            path,
            'it must be relative, of plain names with "/" between, for example data/table.csv.',
        )
    if max(sizes) > _MAX_NAME_BYTES or sum(sizes) + len(sizes) > _MAX_PATH_BYTES:
        raise FileFailed(
            FileFailure.INVALID_PATH,
            path,
            f"it may have {_MAX_PATH_BYTES:,} bytes in all, and {_MAX_NAME_BYTES} in a name.",
        )


def check_size(path: str, size: int) -> None:
    """Raises `FileFailed` over the cap."""
    if size > MAX_FILE_BYTES:
        raise FileFailed(
            FileFailure.TOO_LARGE,
            path,
            f"it has {size:,} bytes, and {MAX_FILE_BYTES:,} are the most. Hand larger data over as a context.",
        )


class FileTransfers:
    """What one sandbox was asked to write and read, a few at a time."""

    def __init__(self, name: str, send: Callable[[pb.AttachResponse], None]) -> None:
        self._name = name
        self._send = send
        self._numbers = itertools.count(1)
        self._room = asyncio.Semaphore(_IN_FLIGHT)
        self._waiting: dict[int, tuple[bool, asyncio.Future[bytes | FileFailure]]] = {}
        self._loss: SandboxLost | None = None

    async def write(self, path: str, data: bytes) -> None:
        """Raises `FileFailed`, `SandboxLost`; `TimeoutError` when the guest does not answer."""
        check_path(path)
        check_size(path, len(data))
        await self._ask(path, False, lambda number: wire_out.write_file_message(number, path, data))

    async def read(self, path: str) -> bytes:
        """Raises as `write` does."""
        check_path(path)
        return await self._ask(path, True, lambda number: wire_out.read_file_message(number, path))

    def ended(self, message: wire.FileEnded) -> None:
        """Raises `wire.ProtocolViolation` for an answer that nobody waits for."""
        reading, future = self._waiting.pop(message.number, (False, None))
        if future is None or (message.data and not reading):
            raise wire.ProtocolViolation("a file that was not asked for")
        if not future.done():
            future.set_result(message.data if message.failure is None else message.failure)

    def lose(self, loss: SandboxLost) -> None:
        self._loss = loss
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(loss)

    async def _ask(self, path: str, reading: bool, message: Callable[[int], pb.AttachResponse]) -> bytes:
        async with self._room:
            if self._loss is not None:
                raise SandboxLost(self._loss.name, self._loss.cause, self._loss.detail)
            number = next(self._numbers)
            # One that is given up stays known until its answer comes, which is no violation then.
            future: asyncio.Future[bytes | FileFailure] = asyncio.get_running_loop().create_future()
            self._waiting[number] = (reading, future)
            self._send(message(number))
            async with asyncio.timeout(_TIMEOUT_S):
                result = await future
        if isinstance(result, FileFailure):
            raise FileFailed(result, path, _DETAILS[result])
        return result
