"""What may go: the oldest of what has ended and of what nobody uses, a few at a time so that others get to write."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.store.rows import RetentionLimits
from orchestrator.views import RunState

_AT_A_TIME = 100
RUN_BYTES = "(bytes + length(row))"  # its events, and its query, answer and settings


@dataclass(frozen=True, slots=True)
class _Old:
    kind: str  # "run" or "context"
    identifier: str
    at: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Retired:
    """What one step has removed from the tables; `files` may be without a row now."""

    runs: int = 0
    contexts: int = 0
    bytes: int = 0
    files: tuple[str, ...] = ()


def retire(connection: sqlite3.Connection, limits: RetentionLimits, now: float, held: Collection[str]) -> Retired:
    """One step within a transaction; to be repeated until it removes nothing. `held` are contexts in use."""
    gone = (
        _too_old(connection, limits, now, held) or _too_many(connection, limits) or _too_large(connection, limits, held)
    )
    files: list[str] = []
    for old in gone:
        if old.kind == "run":
            connection.execute("DELETE FROM runs WHERE run_id = ?", (old.identifier,))
        else:
            row = connection.execute("SELECT sha256 FROM contexts WHERE context_id = ?", (old.identifier,)).fetchone()
            files.append(row[0])
            connection.execute("DELETE FROM contexts WHERE context_id = ?", (old.identifier,))
    return Retired(
        runs=sum(old.kind == "run" for old in gone),
        contexts=sum(old.kind == "context" for old in gone),
        bytes=sum(old.bytes for old in gone),
        files=tuple(files),
    )


def _too_old(connection: sqlite3.Connection, limits: RetentionLimits, now: float, held: Collection[str]) -> list[_Old]:
    if limits.max_age_s is None:
        return []
    before = now - limits.max_age_s
    return [old for old in _oldest(connection, held) if old.at < before]


def _too_many(connection: sqlite3.Connection, limits: RetentionLimits) -> list[_Old]:
    if limits.max_runs is None:
        return []
    (ended,) = connection.execute("SELECT count(*) FROM runs WHERE state != ?", (RunState.RUNNING,)).fetchone()
    return _oldest_runs(connection)[: max(0, ended - limits.max_runs)]


def _too_large(connection: sqlite3.Connection, limits: RetentionLimits, held: Collection[str]) -> list[_Old]:
    if limits.max_bytes is None:
        return []
    (size,) = connection.execute(
        f"SELECT (SELECT coalesce(sum({RUN_BYTES}), 0) FROM runs) + (SELECT coalesce(sum(bytes), 0) FROM contexts)"
    ).fetchone()
    gone: list[_Old] = []
    for old in _oldest(connection, held):
        if size <= limits.max_bytes:
            break
        gone.append(old)
        size -= old.bytes
    return gone


def _oldest(connection: sqlite3.Connection, held: Collection[str]) -> list[_Old]:
    contexts = [
        _Old("context", context_id, used_at, size)
        for context_id, used_at, size in connection.execute(
            "SELECT context_id, used_at, bytes FROM contexts ORDER BY used_at LIMIT ?", (_AT_A_TIME + len(held),)
        )
        if context_id not in held
    ]
    return sorted(_oldest_runs(connection) + contexts, key=lambda old: old.at)[:_AT_A_TIME]


def _oldest_runs(connection: sqlite3.Connection) -> list[_Old]:
    return [
        _Old("run", run_id, at, size)
        for run_id, at, size in connection.execute(
            f"SELECT run_id, coalesce(ended_at, started_at) AS at, {RUN_BYTES} FROM runs WHERE state != ?"
            " ORDER BY at, number LIMIT ?",
            (RunState.RUNNING, _AT_A_TIME),
        )
    ]
