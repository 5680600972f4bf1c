"""Connections to the database: the writer's, in a thread of its own, and the readers'."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import RLMError
from orchestrator.store.failures import renamed, store_failure

logger = logging.getLogger(__name__)
T = TypeVar("T")

_BUSY_TIMEOUT_S = 5.0  # for a person's sqlite3 shell that holds a lock
_READERS = 4
# Records that wait to be written: some seconds of all that a busy service tells, and no more memory than that. A disk
# that is slower for longer must not take the service with it.
_MAX_WAITING = 50_000


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Raises `sqlite3.Error`. Transactions are begun by hand."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if not read_only:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded only before the first table
            connection.execute("PRAGMA journal_mode = WAL")
            # In WAL mode a killed process loses nothing that was committed; a power cut may lose the last commits.
            connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


class Readers:
    """A few read-only connections, lent to one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._room = threading.BoundedSemaphore(_READERS)
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()

    @contextmanager
    def lend(self) -> Iterator[sqlite3.Connection]:
        """Raises `StoreFailed`."""
        with self._room, renamed(self._path):
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                connection = connect(self._path, read_only=True)
            try:
                yield connection
            finally:
                self._idle.put(connection)

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()


class _Job:
    __slots__ = ("future", "weight", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any], future: Future[Any] | None, weight: int = 0) -> None:
        self.work = work
        self.future = future
        self.weight = weight


class Writer:
    """The one thread that writes: what has come together is one transaction.

    What is posted is written within `linger_s`, so that many small writes share a commit; what is called is written at
    once, with all that was posted before it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, linger_s: float = 0.05) -> None:
        self._path = path
        self._connection = connection
        self._linger_s = linger_s
        self._jobs: list[_Job] = []
        self._waiting = 0  # the weight of what is posted and not written, of what is being written too
        self._urgent = False
        self._closing = False
        self._changed = threading.Condition()
        self.problem = ""  # why something posted was lost, the latest
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    def post(self, work: Callable[[sqlite3.Connection], object], weight: int = 0) -> bool:
        """Returns at once. A failure is logged, and in `.problem`.

        `weight` is how many records it writes. False: too many wait already, so that these will not be written.
        """
        with self._changed:
            if self._closing:
                self.problem = "something was written after the store's end"
                return False
            if weight and self._waiting + weight > _MAX_WAITING:
                self._tell(f"the store is too slow: more than {_MAX_WAITING:,} events wait to be written")
                return False
            self._jobs.append(_Job(work, None, weight))
            self._waiting += weight
            self._changed.notify()
            return True

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Returns when it is committed. Raises `StoreFailed`, and what `work` raises of `RLMError`."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the store is closed")
            self._jobs.append(_Job(work, future))
            self._urgent = True
            self._changed.notify()
        return future.result()

    def close(self) -> None:
        """Writes what is left, and closes the connection."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        with closing(self._connection):
            while jobs := self._next():
                if not self._write(jobs):
                    # Something in there cannot be written: it must not take the rest with it.
                    for job in jobs:
                        self._write([job])
                with self._changed:
                    self._waiting -= sum(job.weight for job in jobs)

    def _next(self) -> list[_Job]:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            self._changed.wait_for(lambda: self._urgent or self._closing, self._linger_s)
            jobs, self._jobs, self._urgent = self._jobs, [], False
            return jobs

    def _write(self, jobs: list[_Job]) -> bool:
        """All or nothing. False when there are several, and one failed."""
        results: list[object] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                results.append(job.work(self._connection))
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            if len(jobs) > 1:
                return False
            self._fail(jobs[0], error)
            return True
        for job, result in zip(jobs, results, strict=True):
            if job.future is not None:
                job.future.set_result(result)
        return True

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.warning("the store %s could not roll back: %s", self._path, error)

    def _fail(self, job: _Job, error: Exception) -> None:
        known = store_failure(error, self._path) if isinstance(error, sqlite3.Error) else error
        if job.future is not None:
            job.future.set_exception(known)
            return
        self._tell(str(known), None if isinstance(known, RLMError) else known)

    def _tell(self, problem: str, error: Exception | None = None) -> None:
        if problem != self.problem:
            self.problem = problem
            logger.error("events were not recorded: %s", problem, exc_info=error)
