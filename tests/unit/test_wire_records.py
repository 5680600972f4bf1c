"""Every event survives the wire, whatever is in it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import events as ev
from orchestrator.protocol.rlm.v1 import events_pb2
from orchestrator.values import CellResult, CellStatus, OutputChunk, OutputStream
from orchestrator.wire.records import (
    chunk_message,
    chunk_value,
    record_message,
    record_value,
    result_message,
    result_value,
)
from orchestrator.wire.structs import UnknownWord
from tests.unit.sample_runs import records_of, whole_run

_EVENTS = get_args(ev.Event)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_COUNT = st.integers(0, 2**31 - 1)

st.register_type_strategy(str, _TEXT)
st.register_type_strategy(int, _COUNT)
st.register_type_strategy(float, st.floats(allow_nan=False))


def _records(event: Any) -> st.SearchStrategy[ev.Record]:
    return st.builds(
        ev.Record,
        seq=_COUNT,
        at=st.floats(0, 1e10),
        span_id=st.integers(1, 2**40),
        parent_id=st.none() | st.integers(1, 2**40),
        kind=st.sampled_from(ev.SpanKind),
        depth=st.integers(0, 16),
        event=event,
    )


@pytest.mark.parametrize("kind", _EVENTS, ids=lambda kind: kind.__name__)
def test_every_event_comes_back_as_it_went(kind: type[Any]) -> None:
    @given(_records(st.from_type(kind)))
    def round_trip(record: ev.Record) -> None:
        sent = record_message(record).SerializeToString()
        assert record_value(events_pb2.Record.FromString(sent)) == record

    round_trip()


def test_a_whole_run_comes_back() -> None:
    records = records_of(whole_run)
    assert [record_value(record_message(record)) for record in records] == records


def test_lone_surrogates_of_a_model_s_code_do_not_stop_a_record() -> None:
    record = ev.Record(1, 0.0, 1, None, ev.SpanKind.CELL, 0, ev.CellStarted("print('\ud800')"))
    found = record_value(record_message(record))
    assert found is not None
    assert found.event == ev.CellStarted("print('\ufffd')")


def test_what_is_newer_than_this_release_is_passed_over() -> None:
    assert record_value(events_pb2.Record(seq=1, kind=events_pb2.SPAN_KIND_RUN)) is None
    message = record_message(ev.Record(1, 0.0, 1, None, ev.SpanKind.RUN, 0, ev.IterationEnded(ev.Outcome.OK)))
    message.event.iteration_ended.outcome = 99  # type: ignore[assignment]
    assert record_value(message) is None
    message.kind = 99  # type: ignore[assignment]
    assert record_value(message) is None
    assert chunk_value(events_pb2.CellPrinted(stream=99)) is None  # type: ignore[arg-type]
    with pytest.raises(UnknownWord, match="CellStatus has no constant 0"):
        result_value(events_pb2.CellResult())


def test_results_and_chunks_come_back() -> None:
    chunk = OutputChunk(OutputStream.STDERR, 12, "äöü")
    assert chunk_value(chunk_message(chunk)) == chunk
    result = CellResult(CellStatus.OK)
    assert result_value(result_message(result)) == result


def test_protos_have_no_field_that_the_values_lack() -> None:
    def fields(descriptor: Descriptor) -> set[str]:
        return {field.name for field in descriptor.fields}

    for kind in _EVENTS:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__).lstrip("_")
        field = events_pb2.Event.DESCRIPTOR.fields_by_name[name]
        assert field.message_type is not None
        assert fields(field.message_type) == set(kind.__struct_fields__)
    assert len(events_pb2.Event.DESCRIPTOR.fields) == len(_EVENTS)
