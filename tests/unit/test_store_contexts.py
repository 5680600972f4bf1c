"""Contexts: stored once, in use or not, and gone without a trace."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import Busy, NotFound
from orchestrator.store.database import Store
from orchestrator.store.rows import RetentionLimits, RunFilter
from orchestrator.views import RunState
from tests.unit import store_samples as sample


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, clock=lambda: 1000.0) as store:
        yield store


def test_a_context_is_a_file_named_by_its_content(store: Store, path: Path) -> None:
    context = sample.upload(store, "It is 42.")
    assert context.path.read_text() == "It is 42."
    assert context.sha256 == hashlib.sha256(b"It is 42.").hexdigest()
    assert sample.files_of(path) == [context.sha256]
    assert store.find_context(context.context_id) == context


def test_the_same_content_is_stored_once_for_each_and_one_file_for_all(store: Store, path: Path) -> None:
    first, again, other = (sample.upload(store, "same", who) for who in ("alice", "alice", "bob"))
    assert first == again
    assert other.context_id != first.context_id
    assert len(sample.files_of(path)) == 1
    store.delete_context(first.context_id)
    assert other.path.read_text() == "same"
    store.delete_context(other.context_id)
    assert sample.files_of(path) == []
    assert store.find_context(other.context_id) is None


def test_contexts_are_listed_page_by_page_each_owner_s_own(store: Store) -> None:
    uploaded = [sample.upload(store, f"text {number}").context_id for number in range(3)]
    sample.upload(store, "text", "bob")
    page = store.list_contexts("alice", 2)
    rest = store.list_contexts("alice", 2, page.next_token)
    assert [context.context_id for context in (*page.items, *rest.items)] == uploaded[::-1]
    assert rest.next_token == ""
    assert len(store.list_contexts(None).items) == 4


def test_a_context_in_use_stays_until_the_last_has_let_go(store: Store) -> None:
    context = sample.upload(store)
    for _ in range(2):
        store.hold_context(context.context_id)
    store.release_context(context.context_id)
    with pytest.raises(Busy):
        store.delete_context(context.context_id)
    store.release_context(context.context_id)
    store.delete_context(context.context_id)
    with pytest.raises(NotFound):
        store.delete_context(context.context_id)


def test_an_upload_that_is_given_up_leaves_nothing(store: Store, path: Path) -> None:
    upload = store.new_upload()
    upload.write(b"half of ")
    upload.discard()
    assert sample.files_of(path) == []


def test_what_a_killed_process_left_is_put_in_order(path: Path) -> None:
    with Store.open(path) as store:
        kept, robbed = sample.upload(store, "kept"), sample.upload(store, "robbed")
    folder = kept.path.parent
    (folder / ".upload-0011").write_text("half of ")
    (folder / "ab12").write_text("a file whose row was never committed")
    robbed.path.unlink()
    with Store.open(path) as store:
        assert sample.files_of(path) == [kept.sha256]
        assert [context.context_id for context in store.list_contexts(None).items] == [kept.context_id]


def test_the_oldest_go_and_what_is_in_use_stays(path: Path) -> None:
    now = 0.0
    with Store.open(path, clock=lambda: now) as store:
        contexts = []
        for now in (1.0, 2.0, 3.0):
            contexts.append(sample.upload(store, f"context {now}"))
        store.hold_context(contexts[0].context_id)
        now = 12.5
        removed = store.retention(RetentionLimits(max_age_s=10.0))
        assert (removed.runs, removed.contexts) == (0, 1)
        left = {context.context_id for context in store.list_contexts(None).items}
        assert left == {contexts[0].context_id, contexts[2].context_id}


def test_what_is_said_and_answered_counts_for_a_run_s_size(store: Store) -> None:
    for number in range(1, 4):
        store.put_run(sample.run(number, query="q" * 50_000, started_at=900.0 + number))
        ended = sample.run(number, query="q" * 50_000, answer="a" * 50_000, ended_at=950.0, state=RunState.SUCCEEDED)
        store.update_run(ended)
    assert store.stored_bytes("alice") > 300_000
    assert store.retention(RetentionLimits(max_bytes=250_000)).runs == 1
    assert store.stored_bytes("bob") == 0


def test_runs_go_by_age_by_number_and_by_size(store: Store) -> None:
    for number in range(1, 7):
        run = sample.run(number, started_at=900.0 + number)
        store.put_run(run)
        store.append(run.run_id, sample.records(sample.started(run.run_id), sample.notice(1000)))
        if number != 2:  # it still runs: it stays whatever comes
            ended = sample.run(number, started_at=900.0 + number, ended_at=980.0 + number, state=RunState.SUCCEEDED)
            store.update_run(ended)

    def left() -> list[int]:
        page = store.list_runs(sample_filter, 100)
        return sorted(int(run.run_id.removeprefix("run_")) for run in page.items)

    sample_filter = RunFilter(principal=None)
    assert store.retention(RetentionLimits()).runs == 0
    assert store.retention(RetentionLimits(max_age_s=18.5)).runs == 1  # the clock says 1000
    assert left() == [2, 3, 4, 5, 6]
    assert store.retention(RetentionLimits(max_runs=3)).runs == 1
    assert left() == [2, 4, 5, 6]
    both = store.stored_bytes("alice") * 2 // 4
    removed = store.retention(RetentionLimits(max_bytes=both))
    assert removed.runs == 2
    assert removed.bytes > 2000
    assert left() == [2, 6]
    store.retention(RetentionLimits(max_bytes=1, max_runs=0))
    assert left() == [2]
