"""Runs out of the store as recordings, and recordings into it: the same format as `rlm ask --record` writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from orchestrator.errors import RunNotReplayable, StoreFailed, StoreFailure
from orchestrator.events import Outcome, Record, RunEnded, RunStarted
from orchestrator.folds.journal import JournalReader, JournalWriter
from orchestrator.folds.totals import Totals
from orchestrator.store.rows import StoredRun
from orchestrator.views import RunProblem, RunState

_RUN_ID = re.compile(r"run_[0-9A-Za-z]{1,64}")
_LAST = 253_402_300_799.0  # the year 9999
_MOST_SEQ = 2**63 - 1  # of SQLite
_MOST_CHARS = 4 << 20
_STATES = {Outcome.OK: RunState.SUCCEEDED, Outcome.FAILED: RunState.FAILED, Outcome.CANCELLED: RunState.CANCELLED}
INTERRUPTED = RunProblem("INTERRUPTED", "the service went down while it ran")


def write_journal(path: Path, records: Iterator[Record]) -> None:
    """Raises `InvalidInput` when the file cannot be made, `StoreFailed` when it could not be written to its end."""
    with JournalWriter(path, package=version("rlm-orchestrator"), called="--export") as journal:
        for record in records:
            journal(record)
    if journal.problem:
        raise StoreFailed(StoreFailure.DISK_FULL, journal.problem, "Free some space, or name another disk.")


@dataclass(slots=True)
class Ending:
    """Folds the records of a run into what is to be said of a run that has them and no more."""

    totals: Totals
    last: Record | None = None
    ended: RunEnded | None = None

    def __call__(self, record: Record) -> None:
        self.totals(record)
        self.last = record
        if isinstance(record.event, RunEnded):
            self.ended = record.event

    def of(self, run: StoredRun) -> StoredRun:
        """The run as it ended by these records: INTERRUPTED when its end is not among them."""
        closed = msgspec.structs.replace(
            run,
            ended_at=self.last.at if self.last is not None else run.started_at,
            last_seq=max(run.last_seq, self.last.seq if self.last is not None else 0),
            spent=self.ended.spent if self.ended is not None else self.totals.tree,
            spent_by_model=dict(self.totals.by_model),
            spent_by_depth=dict(self.totals.by_depth),
        )
        if self.ended is None:
            return msgspec.structs.replace(closed, state=RunState.INTERRUPTED, problem=INTERRUPTED)
        state = _STATES[self.ended.outcome]
        return msgspec.structs.replace(
            closed,
            state=state,
            answer=self.ended.answer,
            ending=self.ended.ending,
            problem=None if state is RunState.SUCCEEDED else RunProblem(state.upper(), self.ended.error),
        )


def ending() -> Ending:
    return Ending(Totals(batches_kept=1))


def read_journal(path: Path) -> tuple[RunStarted, float, JournalReader]:
    """What the recording begins with, when that was, and the reader. Raises `RunNotReplayable`."""
    reader = JournalReader(path)
    first = next(iter(reader), None)
    if first is None or not isinstance(first.event, RunStarted):
        raise RunNotReplayable(f"{path}: the recording does not begin with a run's start. Use the whole file.")
    if not _RUN_ID.fullmatch(first.event.run_id):
        raise RunNotReplayable(f"{path}: {first.event.run_id[:80]!r} is not the id of a run.")
    return first.event, first.at, reader


def check_fits(record: Record) -> None:
    """Raises `RunNotReplayable` for what this store, or a message that tells it, cannot hold."""
    if record.seq > _MOST_SEQ or not 0 <= record.at <= _LAST:
        raise RunNotReplayable(f"the record {record.seq} has a number or a time that cannot be.")
    match record.event:
        case RunStarted(query=text) | RunEnded(answer=str(text)) if len(text) > _MOST_CHARS:
            raise RunNotReplayable(f"its query or answer has {len(text):,} characters; {_MOST_CHARS:,} are the most.")
        case _:
            pass
