"""What the store promises whatever happens to its process, its file and its disk."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import StoreFailed, StoreFailure
from orchestrator.store import connections
from orchestrator.store.database import Store
from orchestrator.store.rows import Total
from orchestrator.views import RunState
from tests.unit import store_samples as sample

ROOT = Path(__file__).parents[2]

WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from orchestrator.store.database import Store
from orchestrator.views import RunState
from tests.unit import store_samples as sample

with Store.open(Path(sys.argv[1])) as store:
    store.put_run(sample.run(1))
    store.put_run(sample.run(2, state=RunState.SUCCEEDED))
    for at, record in enumerate(sample.records(sample.started(), *[sample.called() for _ in range(499)])):
        store.append("run_1", [record])
        if at == 399:
            store.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _in_a_process(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_killed_process_loses_nothing_that_was_written_and_its_runs_are_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    died = _in_a_process(WRITE_AND_DIE, path)
    assert died.returncode == -signal.SIGKILL, died.stderr
    with Store.open(path) as store:
        assert store.interrupted == ("run_1",)
        kept = store.records("run_1", limit=1000)
        assert [record.seq for record in kept] == list(range(1, len(kept) + 1))
        assert len(kept) >= 400
        run = store.find_run("run_1")
        assert run is not None
        assert run.state is RunState.INTERRUPTED
        assert run.ended_at == kept[-1].at
        assert run.spent.calls == len(kept) - 1
        assert store.total_of("alice") == Total(run.spent.cost_usd, run.spent.usage.total_tokens)
    with Store.open(path) as store:
        assert store.interrupted == ()
        again = store.find_run("run_1")
        assert again is not None
        assert again.state is RunState.INTERRUPTED
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opening = (
        "import sys; from pathlib import Path; from orchestrator.store.database import Store\n"
        "with Store.open(Path(sys.argv[1])): pass"
    )
    with Store.open(path):
        second = _in_a_process(opening, path)
        assert "in use by another process" in second.stderr
    assert _in_a_process(opening, path).returncode == 0


def _failure(path: Path) -> StoreFailed:
    with pytest.raises(StoreFailed) as caught, Store.open(path):
        pass
    return caught.value


def test_a_store_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Store.open(path) as store:
        store.put_run(sample.run())
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('rlm-orchestrator', '9999_what_is_to_come', '')"
        )
    connection.close()
    failure = _failure(path)
    assert failure.kind is StoreFailure.NEWER_SCHEMA
    assert "9999_what_is_to_come" in str(failure)
    assert "later" in failure.remedy


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (mine TEXT)")
    connection.close()
    assert _failure(path).kind is StoreFailure.UNUSABLE


def test_what_is_no_database_is_named_so(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    assert _failure(path).kind is StoreFailure.UNUSABLE
    assert path.read_bytes().startswith(b"not a database")


def test_a_folder_that_cannot_be_made_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert _failure(tmp_path / "file" / "store.db").kind is StoreFailure.UNUSABLE


def test_a_damaged_file_is_named_so(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Store.open(path) as store:
        store.put_run(sample.run())
        store.append("run_1", sample.records(sample.started(), *[sample.notice(4000) for _ in range(50)]))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    assert _failure(path).kind is StoreFailure.DAMAGED


def test_a_killed_first_start_is_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = connections.connect(path)
    connection.execute(
        "CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set TEXT, name TEXT, applied_at TEXT)"
    )
    connection.close()
    with Store.open(path) as store:
        store.put_run(sample.run())


def test_a_full_disk_costs_events_but_neither_the_store_nor_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Store.open(path) as store:
        store.put_run(sample.run(1))
        pages = store._writer.call(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
        # A cap on the file's pages is what SQLite answers with SQLITE_FULL, as a full disk does.
        store._writer.call(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
        with pytest.raises(StoreFailed) as caught:
            store.put_run(sample.run(2, query="x" * 100_000))
        assert caught.value.kind is StoreFailure.DISK_FULL
        assert "Free some space" in caught.value.remedy
        store.append("run_1", sample.records(sample.started(), sample.notice(100_000)))
        store.flush()
        assert "full" in store.problem
        store._writer.call(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall())
        store.put_run(sample.run(3))
        assert store.find_run("run_1") is not None
        assert store.find_run("run_2") is None


def test_the_files_are_their_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.db"
    with Store.open(path):
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
