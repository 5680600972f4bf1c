"""SQLite's errors, renamed: what went wrong with what is kept on disk, and what to do about it."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from orchestrator.errors import InvalidInput, StoreFailed, StoreFailure

_PRIMARY = 0xFF  # an extended result code holds the primary one in its lowest byte, https://sqlite.org/rescode.html


@contextmanager
def renamed(path: object) -> Iterator[None]:
    """Raises `StoreFailed` for what SQLite or the file system raises in the block, `InvalidInput` for a huge number."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_failure(error, path) from error
    except msgspec.MsgspecError as error:
        raise StoreFailed(
            StoreFailure.DAMAGED, f"a row of the store {path} cannot be read ({error}).", "Restore it from a backup."
        ) from error
    except OverflowError:
        raise InvalidInput("number", "is larger than the store can hold (2^63 - 1).") from None
    except OSError as error:
        raise file_failure(error, path) from error


def store_failure(error: sqlite3.Error, path: object) -> StoreFailed:
    match getattr(error, "sqlite_errorcode", 0) & _PRIMARY:
        case sqlite3.SQLITE_FULL:
            return disk_full(path)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return locked(path)
        case sqlite3.SQLITE_CORRUPT:
            return StoreFailed(
                StoreFailure.DAMAGED,
                f"the store {path} is damaged ({error}).",
                "Restore it from a backup, or save what can be read: sqlite3 FILE .recover",
            )
        case sqlite3.SQLITE_NOTADB:
            return StoreFailed(
                StoreFailure.UNUSABLE, f"{path} is not an SQLite database.", "Name another file for the store."
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_AUTH:
            return StoreFailed(
                StoreFailure.UNUSABLE,
                f"the store {path} cannot be opened for writing ({error}).",
                "Give this user the right to write to the file and its folder, or name another file.",
            )
        case _:
            return StoreFailed(
                StoreFailure.UNUSABLE, f"the store {path} failed ({error}).", "See whether its disk is well."
            )


def file_failure(error: OSError, path: object) -> StoreFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    return StoreFailed(
        StoreFailure.UNUSABLE,
        f"the store {path} cannot be used: {error.strerror or error}.",
        "Give this user the right to write to its folder, or name another file.",
    )


def disk_full(path: object) -> StoreFailed:
    return StoreFailed(
        StoreFailure.DISK_FULL,
        f"the disk of the store {path} is full.",
        "Free some space, delete runs, or lower what is kept.",
    )


def locked(path: object) -> StoreFailed:
    return StoreFailed(
        StoreFailure.LOCKED,
        f"the store {path} is in use by another process.",
        "Stop that one, or name another file for the store.",
    )
