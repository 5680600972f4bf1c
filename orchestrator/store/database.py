"""The store: one SQLite database (WAL), one thread that writes, readers with connections of their own.

All methods block, and may be called from any thread; `asynchronous.StoreThreads` is for event loops. A process that is
killed at any time loses at most what was appended in the last 100 ms, and nothing that a method has returned from.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TypeVar

from orchestrator.errors import Busy, InvalidInput, NotFound
from orchestrator.events import Record, RunEnded
from orchestrator.store import journals, runs
from orchestrator.store.connections import Readers, Writer, connect
from orchestrator.store.contexts import ContextFiles, ContextUpload
from orchestrator.store.failures import locked, renamed
from orchestrator.store.migrations import migrate
from orchestrator.store.retention import RUN_BYTES, Retired, retire
from orchestrator.store.rows import Removed, RetentionLimits, RunFilter, StoredContext, StoredRun, Total
from orchestrator.values import ContextInfo
from orchestrator.views import Page

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_PAGE = 1000
MAX_RUN_BYTES = 1 << 30
PAGE_BYTES = 16 << 20  # of runs as they are stored; as messages they are not larger
_READ_BYTES = 4 << 20
_IMPORTED_AT_A_TIME = 500


class Store:
    """Made by `open`. One process at a time has a store open."""

    def __init__(
        self,
        path: Path,
        writer: Writer,
        readers: Readers,
        files: ContextFiles,
        max_run_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._files = files
        self._max_run_bytes = max_run_bytes
        self._clock = clock
        self._held: Counter[str] = Counter()
        self._holding = threading.Lock()
        self.interrupted: tuple[str, ...] = ()  # runs that ran when the last process died

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, *, max_run_bytes: int = MAX_RUN_BYTES, clock: Callable[[], float] = time.time
    ) -> Iterator[Store]:
        """Makes it or brings it up to date, and holds it for the block.

        What a killed process left is put in order: runs that ran are INTERRUPTED, parts of uploads are removed. A run's
        events take at most `max_run_bytes`. Raises `StoreFailed`.
        """
        with ExitStack() as stack, renamed(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(_only_process(path))
            files = ContextFiles(path.with_name(f"{path.name}.contexts"))
            connection = connect(path)
            path.chmod(0o600)  # it holds prompts and answers
            try:
                migrate(connection, str(path))
            except BaseException:
                connection.close()
                raise
            writer = Writer(path, connection)
            stack.callback(writer.close)
            readers = Readers(path)
            stack.callback(readers.close)
            store = cls(path, writer, readers, files, max_run_bytes, clock)
            store._recover()
            closing_later = stack.pop_all()
        with closing_later:
            yield store

    @property
    def problem(self) -> str:
        """Why events were not recorded, the latest such failure; empty while all is well."""
        return self._writer.problem

    # --- runs and events ---

    def put_run(self, run: StoredRun) -> None:
        """Raises `RequestConflict` for a request id that the principal has used, `StoreFailed`."""
        self._writer.call(lambda connection: runs.put_run(connection, run))

    def update_run(self, run: StoredRun) -> None:
        """What it has used is added to its principal's total when it ends by this. Raises `NotFound`, `StoreFailed`."""
        self._writer.call(lambda connection: runs.update_run(connection, run))

    def find_run(self, run_id: str) -> StoredRun | None:
        return self._read(lambda connection: runs.find_run(connection, run_id))

    def find_request(self, principal: str, request_id: str) -> StoredRun | None:
        return self._read(lambda connection: runs.find_request(connection, principal, request_id))

    def list_runs(self, filter_: RunFilter, page_size: int = 50, page_token: str = "") -> Page[StoredRun]:
        """The newest first, fewer than `page_size` also when they are large.

        Raises `InvalidInput` for a page size or token that cannot be.
        """
        _check_page_size(page_size)
        return self._read(lambda connection: runs.list_runs(connection, filter_, page_size, page_token, PAGE_BYTES))

    def delete_run(self, run_id: str) -> None:
        """With its events. Raises `NotFound`; `Busy` while it runs; `StoreFailed`."""
        self._writer.call(lambda connection: runs.delete_run(connection, run_id))

    def append(self, run_id: str, records: Sequence[Record]) -> None:
        """Returns at once, from any thread, an event loop's too; written within 100 ms. Streamed pieces are left out.

        A failure is logged and in `.problem`: a recording never ends a run. A disk that is too slow for too long loses
        records, but not the run's end.
        """

        def post(kept: Sequence[Record], weight: int) -> bool:
            return self._writer.post(
                lambda connection: runs.append(connection, run_id, kept, self._max_run_bytes), weight
            )

        if not post(records, len(records)) and (end := [each for each in records if isinstance(each.event, RunEnded)]):
            post(end, 0)

    def flush(self) -> None:
        """Returns when all that was appended before is written."""
        self._writer.call(lambda _: None)

    def records(self, run_id: str, after_seq: int = 0, limit: int = 1000) -> tuple[Record, ...]:
        """In order; fewer than `limit` also when they are large. Empty: there are no more."""
        return self._read(lambda connection: runs.records(connection, run_id, after_seq, limit, _READ_BYTES))

    def add_total(self, principal: str, total: Total) -> None:
        """Counts what something other than a run has used."""
        self._writer.call(lambda connection: runs.add_total(connection, principal, total))

    def total_of(self, principal: str) -> Total:
        """Of all its runs that have ended, deleted ones included, and of what `add_total` was told."""
        return self._read(lambda connection: runs.total_of(connection, principal))

    # --- contexts ---

    def new_upload(self) -> ContextUpload:
        """Does not block: there is no file before the first `write`."""
        return self._files.upload()

    def keep_context(self, upload: ContextUpload, principal: str, info: ContextInfo) -> StoredContext:
        """Takes a sealed upload over. Raises `StoreFailed`."""
        now = self._clock()
        with renamed(self.path):
            return self._writer.call(lambda connection: self._files.keep(connection, upload, principal, info, now))

    def stored_bytes(self, principal: str) -> int:
        """Of its runs, events and contexts; a context that others have too counts in full."""

        def sizes(connection: sqlite3.Connection) -> int:
            (size,) = connection.execute(
                f"SELECT (SELECT coalesce(sum({RUN_BYTES}), 0) FROM runs WHERE principal = ?1)"
                " + (SELECT coalesce(sum(bytes), 0) FROM contexts WHERE principal = ?1)",
                (principal,),
            ).fetchone()
            return int(size)

        return self._read(sizes)

    def find_context(self, context_id: str) -> StoredContext | None:
        return self._read(lambda connection: self._files.find(connection, context_id))

    def list_contexts(self, principal: str | None, page_size: int = 50, page_token: str = "") -> Page[StoredContext]:
        """The newest first; `principal` None: everybody's. Raises `InvalidInput`."""
        _check_page_size(page_size)
        return self._read(lambda connection: self._files.list(connection, principal, page_size, page_token))

    def hold_context(self, context_id: str) -> None:
        """It cannot be removed until `release_context` was called as often. Not kept over a restart."""
        with self._holding:
            self._held[context_id] += 1

    def release_context(self, context_id: str) -> None:
        with self._holding:
            self._held[context_id] -= 1
            if self._held[context_id] <= 0:
                del self._held[context_id]

    def delete_context(self, context_id: str) -> None:
        """Raises `NotFound`; `Busy` while it is held; `StoreFailed`."""

        def forget(connection: sqlite3.Connection) -> str:
            with self._holding:
                if context_id in self._held:
                    raise Busy(f"the context {context_id} is in use.", "Wait for the runs and sessions that have it.")
                return self._files.forget(connection, context_id)

        name = self._writer.call(forget)
        self._writer.call(lambda connection: self._files.sweep(connection, [name]))

    # --- housekeeping ---

    def retention(self, limits: RetentionLimits) -> Removed:
        """Removes what is over the limits: the oldest first, never what runs or is held. Raises `StoreFailed`."""
        removed = Removed()

        def step(connection: sqlite3.Connection) -> Retired:
            with self._holding:
                return retire(connection, limits, self._clock(), frozenset(self._held))

        while (retired := self._writer.call(step)) != Retired():
            files = retired.files
            self._writer.call(lambda connection: self._files.sweep(connection, files))  # noqa: B023 - called at once
            removed = Removed(
                removed.runs + retired.runs, removed.contexts + retired.contexts, removed.bytes + retired.bytes
            )
        if removed != Removed():
            self._writer.call(lambda connection: connection.execute("PRAGMA incremental_vacuum").fetchall())
        return removed

    def export_jsonl(self, run_id: str, path: Path) -> None:
        """Writes a recording that `rlm show` can read. Raises `NotFound`, `InvalidInput`, `StoreFailed`."""
        if self.find_run(run_id) is None:
            raise NotFound("run", run_id)
        self.flush()
        with self._readers.lend() as connection, closing(runs.all_records(connection, run_id)) as records:
            journals.write_journal(path, records)

    def import_jsonl(self, path: Path, principal: str) -> StoredRun:
        """Takes a recording in as a run of `principal`.

        Raises `RunNotReplayable` (not a recording), `InvalidInput` (the run is here already), `StoreFailed`.
        """
        start, at, reader = journals.read_journal(path)
        for_end = journals.ending()
        for record in reader:  # all of it is read once before anything is written
            journals.check_fits(record)
            for_end(record)
        run = for_end.of(
            StoredRun(run_id=start.run_id, principal=principal, query=start.query, context=start.context, started_at=at)
        )
        self.put_run(run)
        batch: list[Record] = []
        for record in reader:
            batch.append(record)
            if len(batch) == _IMPORTED_AT_A_TIME:
                self._import(run.run_id, batch)
                batch = []
        self._import(run.run_id, batch)
        return run

    def _import(self, run_id: str, records: Sequence[Record]) -> None:
        self._writer.call(lambda connection: runs.append(connection, run_id, records, self._max_run_bytes))

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._readers.lend() as connection:
            return work(connection)

    def _recover(self) -> None:
        self._writer.call(self._files.recover)
        left = self._read(runs.running)
        for run in left:
            for_end = journals.ending()
            with self._readers.lend() as connection:
                for record in runs.all_records(connection, run.run_id):
                    for_end(record)
            self.update_run(for_end.of(run))
        self.interrupted = tuple(run.run_id for run in left)
        if left:
            logger.warning("%d runs were interrupted when the service went down", len(left))


def _check_page_size(page_size: int) -> None:
    if not 1 <= page_size <= MAX_PAGE:
        raise InvalidInput("page_size", f"must be from 1 to {MAX_PAGE}; it is {page_size}.")


@contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Raises `StoreFailed` when another process has the store open: it would take our runs for interrupted."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise locked(path) from None
        yield
    finally:
        os.close(descriptor)
