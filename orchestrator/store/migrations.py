"""The schema, step by step. A step that was released is never changed: another one follows it.

The only importer of sqlite-utils, whose migrations record each step in the same transaction as what it does: a process
that is killed in between leaves neither, and no lock of its own behind.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database, Migrations

from orchestrator.errors import StoreFailed, StoreFailure

_NAME = "rlm-orchestrator"
_APPLICATION_ID = 0x524C4D31  # "RLM1" in the file's header, for file(1) and for the check below

_steps = Migrations(_NAME)


@_steps(name="0001_runs_events_contexts")
def _first(database: Database) -> None:
    for statement in (
        """CREATE TABLE runs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            run_id TEXT NOT NULL UNIQUE,
            principal TEXT NOT NULL,
            request_id TEXT NOT NULL,
            state TEXT NOT NULL,
            session_id TEXT,
            context_id TEXT,
            started_at REAL NOT NULL,
            ended_at REAL,
            last_seq INTEGER NOT NULL DEFAULT 0,
            bytes INTEGER NOT NULL DEFAULT 0,
            cut INTEGER NOT NULL DEFAULT 0,
            row BLOB NOT NULL
        )""",
        "CREATE UNIQUE INDEX runs_by_request ON runs (principal, request_id) WHERE request_id != ''",
        "CREATE INDEX runs_by_start ON runs (started_at DESC, number DESC)",
        "CREATE INDEX runs_by_principal ON runs (principal, started_at DESC, number DESC)",
        "CREATE INDEX runs_by_state ON runs (state)",
        """CREATE TABLE run_labels (
            run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (key, value, run_id)
        ) WITHOUT ROWID""",
        "CREATE INDEX run_labels_by_run ON run_labels (run_id)",
        """CREATE TABLE events (
            run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
            seq INTEGER NOT NULL,
            record BLOB NOT NULL,
            PRIMARY KEY (run_id, seq)
        )""",
        """CREATE TABLE contexts (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            context_id TEXT NOT NULL UNIQUE,
            principal TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            kind TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            uploaded_at REAL NOT NULL,
            used_at REAL NOT NULL,
            info BLOB NOT NULL,
            UNIQUE (principal, sha256, kind)
        )""",
        "CREATE INDEX contexts_by_content ON contexts (sha256)",
        """CREATE TABLE totals (
            principal TEXT PRIMARY KEY,
            cost_usd REAL NOT NULL,
            tokens INTEGER NOT NULL
        ) WITHOUT ROWID""",
    ):
        database.conn.execute(statement)
    database.conn.execute(f"PRAGMA application_id = {_APPLICATION_ID}")


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Brings the schema up to date.

    Raises `StoreFailed` for a database that is not one of ours, or that a later release wrote; `sqlite3.Error`.
    """
    database = Database(connection)
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    applied = [step.name for step in _steps.applied(database)]
    if tables and application_id != _APPLICATION_ID and applied:
        raise StoreFailed(StoreFailure.DAMAGED, f"{path} has lost its application id.", "Restore it from a backup.")
    if tables and not applied and application_id != _APPLICATION_ID and not _only_own_tables(connection):
        raise StoreFailed(
            StoreFailure.UNUSABLE, f"{path} is a database of another program.", "Name another file for the store."
        )
    known = [step.name for step in _steps.pending(database)] + applied
    if unknown := [name for name in applied if name not in _ALL]:
        raise StoreFailed(
            StoreFailure.NEWER_SCHEMA,
            f"{path} was written by a later release (it has the step {unknown[-1]!r}).",
            "Use that release or a later one, or name another file for the store.",
        )
    if len(known) != len(applied):
        _steps.apply(database)


_ALL = frozenset(("0001_runs_events_contexts",))


def _only_own_tables(connection: sqlite3.Connection) -> bool:
    """What a first start that was killed between making the table of steps and the first step leaves."""
    names = {name for (name,) in connection.execute("SELECT tbl_name FROM sqlite_master")}
    return names <= {_steps.migrations_table, "sqlite_sequence"}
