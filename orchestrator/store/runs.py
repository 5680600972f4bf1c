"""Runs and their events as SQL: each function is one step within a transaction of the caller's."""

from __future__ import annotations

import base64
import binascii
import sqlite3
from collections.abc import Generator, Sequence
from functools import partial
from typing import Annotated

import msgspec

from orchestrator.errors import Busy, InvalidInput, NotFound, RequestConflict
from orchestrator.events import CellPrinted, ModelTextStreamed, NoticeGiven, Record, RunEnded
from orchestrator.store.rows import RunFilter, StoredRun, Total
from orchestrator.text import encoded_json
from orchestrator.views import Page, RunState

_Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # of SQLite
_ENCODER = msgspec.json.Encoder()
_encode = partial(encoded_json, _ENCODER.encode)
_RECORD = msgspec.json.Decoder(Record)
_RUN = msgspec.json.Decoder(StoredRun)
_SELECT = "SELECT row, last_seq FROM runs"


def put_run(connection: sqlite3.Connection, run: StoredRun) -> None:
    """Raises `RequestConflict` when the principal has another run with this request id."""
    try:
        connection.execute(
            "INSERT INTO runs (run_id, principal, request_id, state, session_id, context_id, started_at, ended_at,"
            " last_seq, row) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                run.run_id,
                run.principal,
                run.request_id,
                run.state,
                run.session_id,
                run.context_id,
                run.started_at,
                run.ended_at,
                run.last_seq,
                _encode(run),
            ),
        )
    except sqlite3.IntegrityError:
        if find_run(connection, run.run_id) is not None:
            raise InvalidInput("run_id", f"{run.run_id} is in the store already.", "Delete that run first.") from None
        raise RequestConflict(run.request_id) from None
    connection.executemany(
        "INSERT INTO run_labels (run_id, key, value) VALUES (?, ?, ?)",
        [(run.run_id, key, value) for key, value in run.labels.items()],
    )
    if run.context_id is not None:
        connection.execute(
            "UPDATE contexts SET used_at = max(used_at, ?) WHERE context_id = ?", (run.started_at, run.context_id)
        )


def update_run(connection: sqlite3.Connection, run: StoredRun) -> None:
    """Raises `NotFound`. What a run has used counts for its principal when it ends."""
    before = find_run(connection, run.run_id)
    if before is None:
        raise NotFound("run", run.run_id)
    connection.execute(
        "UPDATE runs SET state = ?, ended_at = ?, last_seq = max(last_seq, ?), row = ? WHERE run_id = ?",
        (run.state, run.ended_at, run.last_seq, _encode(run), run.run_id),
    )
    if before.state is RunState.RUNNING and run.state is not RunState.RUNNING:
        add_total(connection, run.principal, Total(run.spent.cost_usd, run.spent.usage.total_tokens))


def find_run(connection: sqlite3.Connection, run_id: str) -> StoredRun | None:
    return _one(connection.execute(f"{_SELECT} WHERE run_id = ?", (run_id,)))


def find_request(connection: sqlite3.Connection, principal: str, request_id: str) -> StoredRun | None:
    return _one(
        connection.execute(
            f"{_SELECT} WHERE principal = ? AND request_id = ? AND request_id != ''", (principal, request_id)
        )
    )


def list_runs(
    connection: sqlite3.Connection, filter_: RunFilter, page_size: int, page_token: str, max_bytes: int
) -> Page[StoredRun]:
    """The newest first; at least one when there is one, then as many as the two limits allow.

    Raises `InvalidInput` for a token that is not one of ours.
    """
    conditions, values = _conditions(filter_)
    if page_token:
        conditions.append("(started_at, number) < (?, ?)")
        values += read_token(page_token)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    found = connection.execute(
        f"SELECT row, last_seq, started_at, number FROM runs{where} ORDER BY started_at DESC, number DESC LIMIT ?",
        (*values, page_size + 1),
    )
    items: list[StoredRun] = []
    size, last = 0, (0.0, 0)
    for row, last_seq, started_at, number in found:
        size += len(row)
        if items and (len(items) >= page_size or size > max_bytes):
            return Page(tuple(items), make_token(*last))
        items.append(_run(row, last_seq))
        last = started_at, number
    return Page(tuple(items))


def delete_run(connection: sqlite3.Connection, run_id: str) -> None:
    """Raises `NotFound`; `Busy` while it runs."""
    run = find_run(connection, run_id)
    if run is None:
        raise NotFound("run", run_id)
    if run.state is RunState.RUNNING:
        raise Busy(f"the run {run_id} is not over.", "Cancel it first.")
    connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))


def append(connection: sqlite3.Connection, run_id: str, records: Sequence[Record], max_run_bytes: int) -> None:
    """Leaves out what merely repeats, what is there already, and what is more than a run may take.

    A run that is no longer there takes nothing.
    """
    found = connection.execute("SELECT bytes, cut, last_seq FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if found is None:
        return
    size, cut, last_seq = found
    rows: list[tuple[str, int, bytes]] = []
    for record in records:
        last_seq = max(last_seq, record.seq)
        if isinstance(record.event, ModelTextStreamed | CellPrinted):
            continue
        data = _encode(record)
        if size + len(data) > max_run_bytes and not isinstance(record.event, RunEnded):
            if cut:
                continue
            cut = 1
            notice = NoticeGiven(f"the recording reached its limit of {max_run_bytes:,} bytes: only the end follows")
            data = _ENCODER.encode(msgspec.structs.replace(record, event=notice))
        size += len(data)
        rows.append((run_id, record.seq, data))
    connection.executemany("INSERT OR IGNORE INTO events (run_id, seq, record) VALUES (?, ?, ?)", rows)
    connection.execute(
        "UPDATE runs SET bytes = ?, cut = ?, last_seq = ? WHERE run_id = ?", (size, cut, last_seq, run_id)
    )


def records(
    connection: sqlite3.Connection, run_id: str, after_seq: int, limit: int, max_bytes: int
) -> tuple[Record, ...]:
    """In order; at least one when there is one, then as many as the two limits allow."""
    taken: list[Record] = []
    size = 0
    for (data,) in connection.execute(
        "SELECT record FROM events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?", (run_id, after_seq, limit)
    ):
        size += len(data)
        if taken and size > max_bytes:
            break
        taken.append(_RECORD.decode(data))
    return tuple(taken)


def all_records(connection: sqlite3.Connection, run_id: str) -> Generator[Record, None, None]:
    for (data,) in connection.execute("SELECT record FROM events WHERE run_id = ? ORDER BY seq", (run_id,)):
        yield _RECORD.decode(data)


def running(connection: sqlite3.Connection) -> list[StoredRun]:
    rows = connection.execute(f"{_SELECT} WHERE state = ?", (RunState.RUNNING,)).fetchall()
    return [_run(*row) for row in rows]


def add_total(connection: sqlite3.Connection, principal: str, total: Total) -> None:
    connection.execute(
        "INSERT INTO totals (principal, cost_usd, tokens) VALUES (?, ?, ?) ON CONFLICT (principal)"
        " DO UPDATE SET cost_usd = cost_usd + excluded.cost_usd, tokens = tokens + excluded.tokens",
        (principal, total.cost_usd, total.tokens),
    )


def total_of(connection: sqlite3.Connection, principal: str) -> Total:
    found = connection.execute("SELECT cost_usd, tokens FROM totals WHERE principal = ?", (principal,)).fetchone()
    return Total(*found) if found else Total()


def make_token(at: float, number: int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((at, number))).decode().rstrip("=")


def read_token(token: str) -> tuple[float, int]:
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        return msgspec.json.decode(data, type=tuple[float, _Number])
    except (binascii.Error, ValueError, RecursionError):
        raise InvalidInput("page_token", "is not one that this service gave.", "Begin with the first page.") from None


def _conditions(filter_: RunFilter) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    values: list[object] = []
    for condition, value in (
        ("principal = ?", filter_.principal),
        ("session_id = ?", filter_.session_id),
        ("started_at > ?", filter_.started_after),
        ("started_at < ?", filter_.started_before),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if filter_.states:
        conditions.append(f"state IN ({', '.join('?' * len(filter_.states))})")
        values += sorted(filter_.states)
    for pair in filter_.labels.items():
        conditions.append("run_id IN (SELECT run_id FROM run_labels WHERE key = ? AND value = ?)")
        values += pair
    return conditions, values


def _one(cursor: sqlite3.Cursor) -> StoredRun | None:
    found = cursor.fetchone()
    return _run(*found) if found else None


def _run(row: bytes, last_seq: int) -> StoredRun:
    return msgspec.structs.replace(_RUN.decode(row), last_seq=last_seq)
