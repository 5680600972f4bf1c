"""Runs that were recorded once must still be decided alike. To record them anew, see `tests.replay.record`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from orchestrator.errors import RunNotReplayable
from orchestrator.events import CellStarted, IterationStarted, ModelCallEnded, Record, RlmEnded, RlmStarted, RunEnded
from orchestrator.folds.journal import JournalReader
from orchestrator.rlm.replay import replay
from tests.replay.record import RUNS, record
from tests.replay.scenes import SCENES, Scene


def recorded(name: str) -> list[Record]:
    return list(JournalReader(RUNS / f"{name}.jsonl"))


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_a_recorded_run_is_still_decided_alike(path: Path) -> None:
    records = list(JournalReader(path))
    rlms = replay(records)
    assert len(rlms) == sum(isinstance(record.event, RlmStarted) for record in records)
    (ended,) = [record.event for record in records if isinstance(record.event, RunEnded)]
    assert rlms[0].ended is not None
    assert rlms[0].ended.answer == ended.answer
    assert all(rlm.ended is not None for rlm in rlms)


def test_each_scene_is_recorded() -> None:
    assert {path.stem for path in RUNS.glob("*.jsonl")} == {scene.name for scene in SCENES}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
async def test_the_driver_still_plays_the_scene_as_it_was_recorded(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "now.jsonl"
    await record(scene, path)
    then, now = recorded(scene.name), list(JournalReader(path))
    assert [r.transcript for r in replay(now)] == [r.transcript for r in replay(then)]


def test_a_record_that_stops_early_replays_up_to_there() -> None:
    records = recorded("depth_1")
    at = next(i for i, record in enumerate(records) if isinstance(record.event, CellStarted))
    (rlm,) = replay(records[: at + 1])
    assert rlm.ended is None
    assert rlm.transcript.turns[-1].cells[-1].result is None


Change = Callable[[Record], Record]


def with_event(record: Record, **changes: object) -> Record:
    return msgspec.structs.replace(record, event=msgspec.structs.replace(record.event, **changes))


def changed(kind: type, which: int, **changes: object) -> list[Record]:
    """The depth_1 run with one event of this kind changed."""
    records = recorded("depth_1")
    places = [i for i, record in enumerate(records) if isinstance(record.event, kind) and record.depth == 0]
    place = places[which]
    records[place] = with_event(records[place], **changes)
    return records


@pytest.mark.parametrize(
    ("records", "difference"),
    [
        (changed(CellStarted, 0, code="other()"), r"the run ran 'other\(\)'; now it would run 'lines = context"),
        (changed(ModelCallEnded, 0, text="no code"), r"the run ran 'lines = .*; now it would ask the model"),
        (changed(ModelCallEnded, 1, text="FINAL(early)"), r"the run asked the model; now it would answer 'early'"),
        (changed(IterationStarted, 2, last_resort=True), r"asked the model for its best answer; now it would ask the"),
        (changed(RlmEnded, 0, answer="another"), r"the run answered 'another' \(final\); now it would answer '2842"),
        (changed(RlmStarted, 0, max_iterations=3), r"the run asked the model; now it would ask .* best answer"),
    ],
    ids=["cell", "reply", "final", "last resort", "answer", "iterations"],
)
def test_the_first_difference_is_named(records: list[Record], difference: str) -> None:
    with pytest.raises(RunNotReplayable, match=rf"^event \d+ \(depth 0, \w+\): .*{difference}"):
        replay(records)


@pytest.mark.parametrize("kind", [ModelCallEnded, IterationStarted])
def test_a_record_with_something_missing_is_refused(kind: type) -> None:
    records = recorded("depth_1")
    first = next(i for i, record in enumerate(records) if isinstance(record.event, kind))
    with pytest.raises(RunNotReplayable, match=r"^event \d+"):
        replay(records[:first] + records[first + 1 :])
