"""Runs and their events, kept and found again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.errors import Busy, InvalidInput, NotFound, RequestConflict, RunNotReplayable
from orchestrator.events import NoticeGiven, RunEnded
from orchestrator.folds.journal import JournalWriter
from orchestrator.store.database import Store
from orchestrator.store.rows import RunFilter, StoredRun, Total
from orchestrator.values import Spent, Usage
from orchestrator.views import RunProblem, RunState
from tests.unit import store_samples as sample

EVERYBODY = RunFilter(principal=None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as store:
        yield store


def _ended(run: StoredRun, **changes: object) -> StoredRun:
    return msgspec.structs.replace(run, **{"state": RunState.SUCCEEDED, "ended_at": 9.0, **changes})


def test_a_run_is_found_as_it_was_put(store: Store) -> None:
    run = sample.run(labels={"team": "a"}, spent_by_depth={0: Spent(calls=2)}, settings={"model": "m", "models": []})
    store.put_run(run)
    assert store.find_run("run_1") == run
    assert store.find_request("alice", "request-1") == run
    assert store.find_request("bob", "request-1") is None
    assert store.find_run("run_2") is None


def test_a_request_id_is_a_principal_s_own(store: Store) -> None:
    store.put_run(sample.run(1, request_id="r"))
    store.put_run(sample.run(2, request_id="r", principal="bob"))
    with pytest.raises(RequestConflict):
        store.put_run(sample.run(3, request_id="r"))
    assert store.find_run("run_3") is None


def test_runs_without_a_request_id_do_not_collide(store: Store) -> None:
    store.put_run(sample.run(1, request_id=""))
    store.put_run(sample.run(2, request_id=""))
    assert store.find_request("alice", "") is None


def test_one_bad_write_does_not_take_its_neighbors_with_it(store: Store) -> None:
    store.put_run(sample.run(1, request_id="r"))
    store.append("run_1", sample.records(sample.started()))
    with pytest.raises(RequestConflict):
        store.put_run(sample.run(2, request_id="r"))
    assert [record.seq for record in store.records("run_1")] == [1]
    assert store.problem == ""


def test_streamed_pieces_are_not_kept_and_the_rest_is_in_order(store: Store) -> None:
    store.put_run(sample.run())
    recorded = sample.records(sample.started(), sample.piece(), sample.piece(), sample.called(), sample.ended())
    store.append("run_1", recorded[:2])
    store.append("run_1", recorded[2:])
    store.flush()
    assert store.records("run_1") == tuple(recorded[i] for i in (0, 3, 4))
    assert store.records("run_1", after_seq=1, limit=1) == (recorded[3],)
    found = store.find_run("run_1")
    assert found is not None
    assert found.last_seq == 5


def test_what_is_appended_twice_is_kept_once(store: Store) -> None:
    store.put_run(sample.run())
    for _ in range(2):
        store.append("run_1", sample.records(sample.started()))
    store.flush()
    assert len(store.records("run_1")) == 1


def test_events_of_a_run_that_is_gone_are_dropped_in_silence(store: Store) -> None:
    store.append("run_9", sample.records(sample.started("run_9")))
    store.flush()
    assert store.records("run_9") == ()
    assert store.problem == ""


def test_a_run_over_its_size_keeps_its_beginning_a_notice_and_its_end(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db", max_run_bytes=2000) as store:
        store.put_run(sample.run())
        big = [sample.notice(900) for _ in range(5)]
        store.append("run_1", sample.records(sample.started(), *big, sample.ended()))
        store.flush()
        *_, last_notice, end = [record.event for record in store.records("run_1")]
        assert isinstance(last_notice, NoticeGiven)
        assert "2,000 bytes" in last_notice.text
        assert isinstance(end, RunEnded)
        assert len(store.records("run_1")) == 4


def test_runs_are_listed_page_by_page_the_newest_first(store: Store) -> None:
    for number in range(1, 8):
        store.put_run(sample.run(number, started_at=float(number // 2)))
    seen: list[str] = []
    token = ""
    while True:
        page = store.list_runs(EVERYBODY, 3, token)
        seen += [run.run_id for run in page.items]
        if not (token := page.next_token):
            break
    assert seen == [f"run_{number}" for number in range(7, 0, -1)]


@pytest.mark.parametrize("token", ["x", "!!", "eyJh", "W10", "bnVsbA"])
def test_a_page_token_of_somebody_else_is_refused(store: Store, token: str) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        store.list_runs(EVERYBODY, 3, token)


@pytest.mark.parametrize("size", [0, -1, 1001])
def test_a_page_size_has_bounds(store: Store, size: int) -> None:
    with pytest.raises(InvalidInput, match="page_size"):
        store.list_runs(EVERYBODY, size)


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        (RunFilter(principal="bob"), {3}),
        (RunFilter(principal=None, states=frozenset({RunState.SUCCEEDED})), {2}),
        (RunFilter(principal=None, states=frozenset({RunState.SUCCEEDED, RunState.RUNNING})), {1, 2, 3}),
        (RunFilter(principal=None, session_id="s"), {1}),
        (RunFilter(principal=None, started_after=1.0), {2, 3}),
        (RunFilter(principal=None, started_before=3.0), {1, 2}),
        (RunFilter(principal=None, labels={"a": "1"}), {1, 2}),
        (RunFilter(principal=None, labels={"a": "1", "b\"'": "2"}), {2}),
        (RunFilter(principal=None, labels={"a": "2"}), set()),
    ],
)
def test_runs_are_filtered_by_all_that_is_asked(store: Store, filter_: RunFilter, found: set[int]) -> None:
    store.put_run(sample.run(1, session_id="s", labels={"a": "1"}))
    store.put_run(sample.run(2, labels={"a": "1", "b\"'": "2"}))
    store.update_run(_ended(sample.run(2, labels={"a": "1", "b\"'": "2"})))
    store.put_run(sample.run(3, principal="bob"))
    assert {run.run_id for run in store.list_runs(filter_).items} == {f"run_{number}" for number in found}


def test_a_run_is_deleted_with_its_events_and_its_request_once_it_is_over(store: Store) -> None:
    run = sample.run(labels={"a": "1"})
    store.put_run(run)
    store.append("run_1", sample.records(sample.started()))
    with pytest.raises(Busy, match="Cancel"):
        store.delete_run("run_1")
    store.update_run(_ended(run))
    store.delete_run("run_1")
    assert store.find_run("run_1") is None
    assert store.records("run_1") == ()
    assert store.find_request("alice", "request-1") is None
    with pytest.raises(NotFound):
        store.delete_run("run_1")
    store.put_run(run)  # also its labels and events are gone
    assert store.records("run_1") == ()


def test_what_is_not_there_cannot_be_updated(store: Store) -> None:
    with pytest.raises(NotFound):
        store.update_run(sample.run())


def test_a_principal_s_total_counts_each_run_once_and_outlives_it(store: Store) -> None:
    spent = Spent(cost_usd=0.5, usage=Usage(input_tokens=7, output_tokens=3))
    for number in (1, 2):
        store.put_run(sample.run(number))
        for _ in range(2):
            store.update_run(_ended(sample.run(number), spent=spent))
    store.delete_run("run_1")
    store.add_total("alice", Total(cost_usd=1.0, tokens=5))
    assert store.total_of("alice") == Total(cost_usd=2.0, tokens=25)
    assert store.total_of("bob") == Total()


def test_a_recording_goes_out_and_comes_in_again(store: Store, tmp_path: Path) -> None:
    recorded = sample.records(sample.started(), sample.called(), sample.ended(Spent(calls=1, cost_usd=0.5)))
    store.put_run(sample.run())
    store.append("run_1", recorded)
    store.export_jsonl("run_1", tmp_path / "run.jsonl")
    store.update_run(_ended(sample.run()))
    store.delete_run("run_1")
    taken = store.import_jsonl(tmp_path / "run.jsonl", "bob")
    assert store.records("run_1") == tuple(recorded)
    assert store.find_run("run_1") == taken
    assert (taken.principal, taken.state, taken.answer, taken.query) == (
        "bob",
        RunState.SUCCEEDED,
        "42",
        "What is it?",
    )
    assert (taken.spent.cost_usd, taken.spent_by_model["m"].calls, taken.last_seq) == (0.5, 1, 3)
    with pytest.raises(InvalidInput, match="already"):
        store.import_jsonl(tmp_path / "run.jsonl", "bob")


def test_an_unfinished_recording_comes_in_as_interrupted(store: Store, tmp_path: Path) -> None:
    store.put_run(sample.run())
    store.append("run_1", sample.records(sample.started(), sample.called()))
    store.export_jsonl("run_1", tmp_path / "run.jsonl")
    text = (tmp_path / "run.jsonl").read_text().replace("run_1", "run_2")
    (tmp_path / "run.jsonl").write_text(text)
    taken = store.import_jsonl(tmp_path / "run.jsonl", "bob")
    assert taken.state is RunState.INTERRUPTED
    assert isinstance(taken.problem, RunProblem)


def test_what_is_no_recording_is_refused_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text("hello\n")
    with pytest.raises(RunNotReplayable):
        store.import_jsonl(tmp_path / "run.jsonl", "bob")
    with pytest.raises(NotFound):
        store.export_jsonl("run_1", tmp_path / "x")
    assert store.list_runs(EVERYBODY).items == ()


def test_a_disk_that_is_too_slow_costs_records_and_not_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.connections._MAX_WAITING", 3)
    store.put_run(sample.run(1))
    go_on, writing = threading.Event(), threading.Event()

    def stuck(_: object) -> None:
        writing.set()
        go_on.wait()

    store._writer.post(stuck)
    store._writer._urgent = True
    writing.wait()
    records = sample.records(sample.started(), *[sample.notice() for _ in range(4)], sample.ended())
    store.append("run_1", records[:3])
    store.append("run_1", records[3:5])  # no room
    store.append("run_1", records[5:])  # no room either, but it is the run's end
    go_on.set()
    store.flush()
    assert [record.seq for record in store.records("run_1")] == [1, 2, 3, 6]
    assert "more than 3 events wait to be written" in store.problem
    store.append("run_1", sample.records(*[sample.notice()] * 7)[6:])
    store.flush()
    assert store.records("run_1")[-1].seq == 7


def test_a_recording_of_any_length_is_taken_in_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.connections._MAX_WAITING", 3)
    path = tmp_path / "run.jsonl"
    with JournalWriter(path, package="0") as journal:
        for record in sample.records(sample.started(), *[sample.notice() for _ in range(600)], sample.ended()):
            journal(record)
    store.import_jsonl(path, "alice")
    assert len(store.records("run_1")) == 602
