"""Contexts: a file each beside the database, named by its SHA-256, and a row for everybody who uploaded it."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from orchestrator.errors import NotFound
from orchestrator.store.rows import StoredContext
from orchestrator.store.runs import make_token, read_token
from orchestrator.values import ContextInfo
from orchestrator.views import Page

logger = logging.getLogger(__name__)

_SELECT = "SELECT context_id, principal, sha256, info, uploaded_at, number FROM contexts"
_PARTIAL = ".upload-"


class ContextUpload:
    """A file that is being written, in any thread but one at a time. Ended by `Store.keep_context` or `discard`.

    The file is made by the first write: between making this and being ready to discard it, nothing can be left behind.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{_PARTIAL}{secrets.token_hex(8)}"
        self.size = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    @property
    def sha256(self) -> str:
        """Hex, of what was written so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Raises `OSError`."""
        self._opened().write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def seal(self) -> None:
        """All is written; it is safe on disk from now on. Raises `OSError`."""
        file = self._opened()
        file.flush()
        os.fsync(file.fileno())
        file.close()

    def discard(self) -> None:
        """Nothing stays; does nothing to what was kept."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError:
            pass  # the disk is full, and what could not be flushed is thrown away
        self.path.unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self.path.open("xb")
        return self._file


class ContextFiles:
    """The folder of the files, and the rows. Each function that takes a connection is a step of a transaction."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def upload(self) -> ContextUpload:
        return ContextUpload(self.directory)

    def keep(
        self, connection: sqlite3.Connection, upload: ContextUpload, principal: str, info: ContextInfo, now: float
    ) -> StoredContext:
        """The same content of the same principal and kind is the context that is there already."""
        found = connection.execute(
            f"{_SELECT} WHERE principal = ? AND sha256 = ? AND kind = ?", (principal, upload.sha256, info.kind)
        ).fetchone()
        if found is not None:
            connection.execute("UPDATE contexts SET used_at = ? WHERE context_id = ?", (now, found[0]))
            upload.path.unlink(missing_ok=True)
            return self._context(found)
        # The same bytes of somebody else: the file in place is as good, and may be in use.
        final = self.directory / upload.sha256
        if final.exists():
            upload.path.unlink(missing_ok=True)
        else:
            upload.path.rename(final)
        context_id = f"ctx_{secrets.token_hex(8)}"
        connection.execute(
            "INSERT INTO contexts (context_id, principal, sha256, kind, bytes, uploaded_at, used_at, info)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (context_id, principal, upload.sha256, info.kind, info.size_bytes, now, now, msgspec.json.encode(info)),
        )
        return StoredContext(
            context_id=context_id, principal=principal, sha256=upload.sha256, info=info, uploaded_at=now, path=final
        )

    def find(self, connection: sqlite3.Connection, context_id: str) -> StoredContext | None:
        found = connection.execute(f"{_SELECT} WHERE context_id = ?", (context_id,)).fetchone()
        return self._context(found) if found else None

    def list(
        self, connection: sqlite3.Connection, principal: str | None, page_size: int, page_token: str
    ) -> Page[StoredContext]:
        """The newest first; `principal` None: everybody's. Raises `InvalidInput` for a token that is not ours."""
        conditions, values = ["1"], list[object]()
        if principal is not None:
            conditions, values = ["principal = ?"], [principal]
        if page_token:
            conditions.append("(uploaded_at, number) < (?, ?)")
            values += read_token(page_token)
        rows = connection.execute(
            f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY uploaded_at DESC, number DESC LIMIT ?",
            (*values, page_size + 1),
        ).fetchall()
        items = tuple(self._context(row) for row in rows[:page_size])
        return Page(items, make_token(*rows[page_size - 1][4:]) if len(rows) > page_size else "")

    def forget(self, connection: sqlite3.Connection, context_id: str) -> str:
        """Removes the row, and returns the name of the file, for `sweep` once that is committed. Raises `NotFound`."""
        found = self.find(connection, context_id)
        if found is None:
            raise NotFound("context", context_id)
        connection.execute("DELETE FROM contexts WHERE context_id = ?", (context_id,))
        return found.sha256

    def sweep(self, connection: sqlite3.Connection, names: Iterable[str]) -> None:
        """Removes those of these files that no row speaks of."""
        for name in names:
            if not connection.execute("SELECT 1 FROM contexts WHERE sha256 = ?", (name,)).fetchone():
                (self.directory / name).unlink(missing_ok=True)

    def recover(self, connection: sqlite3.Connection) -> None:
        """What a killed process left: parts of uploads, files without a row; and rows whose file somebody took away."""
        names = os.listdir(self.directory)
        for name in names:
            if name.startswith(_PARTIAL):
                (self.directory / name).unlink(missing_ok=True)
        self.sweep(connection, [name for name in names if not name.startswith(_PARTIAL)])
        kept = set(names)
        for context_id, sha256 in connection.execute("SELECT context_id, sha256 FROM contexts").fetchall():
            if sha256 not in kept:
                logger.warning("the file of the context %s is gone: it is forgotten", context_id)
                connection.execute("DELETE FROM contexts WHERE context_id = ?", (context_id,))

    def _context(self, row: tuple[str, str, str, bytes, float, int]) -> StoredContext:
        context_id, principal, sha256, info, uploaded_at, _ = row
        return StoredContext(
            context_id=context_id,
            principal=principal,
            sha256=sha256,
            info=msgspec.json.decode(info, type=ContextInfo),
            uploaded_at=uploaded_at,
            path=self.directory / sha256,
        )
