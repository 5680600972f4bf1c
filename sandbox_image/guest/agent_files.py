"""Files that the host has written and read below /tmp, where code may have put anything at any name.

No symbolic link is followed, not even on the way: the agent can open what code must not see, its own memory among it.
"""

from __future__ import annotations

import errno
import os
import stat

import guest_messages as pb

FILE_CAP = 32 << 20  # bytes
MAX_PATH = 1024  # bytes

# A FIFO, or a lease that code holds (fcntl(2)), must not block an open: the agent has no other thread to go on with.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _SAFELY

_STATUSES = {
    errno.ENOENT: pb.FILE_STATUS_NOT_FOUND,
    errno.ENOTDIR: pb.FILE_STATUS_NOT_REGULAR,
    errno.EISDIR: pb.FILE_STATUS_NOT_REGULAR,
    errno.ELOOP: pb.FILE_STATUS_NOT_REGULAR,
    errno.ENXIO: pb.FILE_STATUS_NOT_REGULAR,
    errno.ENOTEMPTY: pb.FILE_STATUS_NOT_REGULAR,
    errno.EEXIST: pb.FILE_STATUS_NOT_REGULAR,
    errno.ENAMETOOLONG: pb.FILE_STATUS_INVALID_PATH,
    errno.ENOSPC: pb.FILE_STATUS_DISK_FULL,
    errno.EDQUOT: pb.FILE_STATUS_DISK_FULL,
    errno.EFBIG: pb.FILE_STATUS_TOO_LARGE,
}


class _Refused(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


def write_file(root: str, message: pb.WriteFile) -> pb.FileEnded:
    """Writes it below `root`: all of it under its name, or nothing."""
    try:
        if len(message.data) > FILE_CAP:
            raise _Refused(pb.FILE_STATUS_TOO_LARGE)
        folder, name = _folder_of(root, message.path, make=True)
        try:
            _write(folder, name, f".rlm-file-{message.number}", message.data)
        finally:
            os.close(folder)
    except (_Refused, OSError) as error:
        return _failed(message.number, error)
    return pb.FileEnded(number=message.number, status=pb.FILE_STATUS_OK)


def read_file(root: str, message: pb.ReadFile) -> pb.FileEnded:
    """Reads it from below `root`, as it is at this moment."""
    try:
        folder, name = _folder_of(root, message.path, make=False)
        try:
            data = _read(folder, name)
        finally:
            os.close(folder)
    except (_Refused, OSError) as error:
        return _failed(message.number, error)
    return pb.FileEnded(number=message.number, status=pb.FILE_STATUS_OK, data=data)


def _folder_of(root: str, path: str, *, make: bool) -> tuple[int, str]:
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in (*folders, name)) or len(path.encode()) > MAX_PATH:
        raise _Refused(pb.FILE_STATUS_INVALID_PATH)
    descriptor = os.open(root, _FOLDER)
    for part in folders:
        try:
            if make:
                try:
                    os.mkdir(part, 0o755, dir_fd=descriptor)
                except FileExistsError:
                    pass  # whether it is a folder is seen by opening it
            deeper = os.open(part, _FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = deeper
    return descriptor, name


def _write(folder: int, name: str, partial: str, data: bytes) -> None:
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _Refused(pb.FILE_STATUS_NOT_REGULAR)
    except FileNotFoundError:
        pass  # a new one
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o644, dir_fd=folder)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        try:
            os.unlink(partial, dir_fd=folder)
        except FileNotFoundError:
            pass  # the code was quicker
        raise
    finally:
        os.close(descriptor)


def _read(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _Refused(pb.FILE_STATUS_NOT_REGULAR)
        if found.st_size > FILE_CAP:
            raise _Refused(pb.FILE_STATUS_TOO_LARGE)
        pieces: list[bytes] = []
        left = FILE_CAP + 1  # it may grow meanwhile
        while left and (piece := os.read(descriptor, min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
        if not left:
            raise _Refused(pb.FILE_STATUS_TOO_LARGE)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def _failed(number: int, error: _Refused | OSError) -> pb.FileEnded:
    if isinstance(error, _Refused):
        return pb.FileEnded(number=number, status=error.status)
    return pb.FileEnded(number=number, status=_STATUSES.get(error.errno or 0, pb.FILE_STATUS_NOT_PERMITTED))
