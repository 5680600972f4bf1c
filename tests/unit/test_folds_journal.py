from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InvalidInput, RunNotReplayable
from orchestrator.events import CellPrinted, ModelTextStreamed, NoticeGiven
from orchestrator.folds.journal import JournalReader, JournalWriter
from tests.unit.sample_runs import records_of, whole_run


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    with JournalWriter(path, package="0.1.0") as journal:
        whole_run(journal)
    return path


def test_what_is_written_is_read_back_but_for_streamed_pieces(recorded: Path) -> None:
    expected = [each for each in records_of(whole_run) if not isinstance(each.event, ModelTextStreamed | CellPrinted)]
    reader = JournalReader(recorded)
    assert list(reader) == expected
    assert list(reader) == expected
    assert not reader.cut
    assert reader.header.package == "0.1.0"


def test_it_is_for_its_owner_alone(recorded: Path) -> None:
    assert recorded.stat().st_mode & 0o777 == 0o600


def test_one_that_takes_the_place_of_a_readable_file_is_for_its_owner_alone_too(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text("data")
    path.chmod(0o644)
    with JournalWriter(path, package="0.1.0"):
        pass
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_recording_into_a_device_leaves_its_mode_alone() -> None:
    before = Path("/dev/null").stat().st_mode
    with JournalWriter(Path("/dev/null"), package="0.1.0"):
        pass
    assert Path("/dev/null").stat().st_mode == before


def test_every_line_is_on_disk_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JournalWriter(path, package="0") as journal:
        for count, record in enumerate(records_of(whole_run)[:3], 1):
            journal(record)
            assert len(list(JournalReader(path))) == count


@pytest.mark.parametrize("removed", [1, 2, 40])
def test_a_torn_last_line_is_left_out(recorded: Path, removed: int) -> None:
    data = recorded.read_bytes()
    recorded.write_bytes(data[:-removed])
    reader = JournalReader(recorded)
    records = list(reader)
    # Without its newline alone the last line is whole.
    assert reader.cut is (removed > 1)
    assert len(records) == data.count(b"\n") - 1 - (removed > 1)


def test_a_spoilt_line_is_named(recorded: Path) -> None:
    lines = recorded.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b'"depth":', b'"deep":')
    recorded.write_bytes(b"\n".join(lines))
    with pytest.raises(RunNotReplayable, match="line 4: not a valid record"):
        list(JournalReader(recorded))


def test_lines_out_of_order_are_named(recorded: Path) -> None:
    lines = recorded.read_bytes().split(b"\n")
    lines[3], lines[4] = lines[4], lines[3]
    recorded.write_bytes(b"\n".join(lines))
    with pytest.raises(RunNotReplayable, match="line 5: record"):
        list(JournalReader(recorded))


@pytest.mark.parametrize(
    ("first_line", "message"),
    [
        (b"", "line 1: this is not a recorded run"),
        (b"hello\n", "line 1: this is not a recorded run"),
        (b'{"format":"other","version":1,"package":"0"}\n', "the format is 'other'"),
        (b'{"format":"rlm-journal","version":9,"package":"7.0"}\n', "Read it with release 7.0"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, first_line: bytes, message: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(first_line)
    with pytest.raises(RunNotReplayable, match=message):
        JournalReader(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotReplayable, match="No such file"):
        JournalReader(tmp_path / "none")


def test_it_stops_at_its_limit_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JournalWriter(path, package="0", max_bytes=1_000) as journal:
        whole_run(journal)
    assert "reached its limit of 1,000 bytes" in journal.problem
    *_, last = JournalReader(path)
    assert isinstance(last.event, NoticeGiven)
    assert path.stat().st_size < 1_500


def test_a_full_disk_ends_the_recording_not_the_run() -> None:
    journal = JournalWriter(Path("/dev/full"), package="0")
    whole_run(journal)
    journal.close()
    assert "No space left" in journal.problem


def test_a_place_that_cannot_be_written_is_a_user_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--record: cannot write"):
        JournalWriter(tmp_path / "none" / "run.jsonl", package="0")
