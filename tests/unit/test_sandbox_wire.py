"""Whatever bytes a guest sends: a value of known types, or a refusal that repeats nothing of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import events
from orchestrator.events import Outcome, Record, SpanKind
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire, wire_out
from orchestrator.sandbox.output import OutputFold, OutputOverrun
from orchestrator.values import Answered, Captured, CellStatus, Failed, FailureReason, OutputStream, Slot
from orchestrator.wire.caps import MAX_RESPONSE_BYTES
from orchestrator.wire.records import chunk_message, record_message, record_value, result_message

numbers = st.integers(0, 2**32 - 1)
words = st.text(max_size=20)
cell_ends = st.builds(
    pb.CellEnded,
    cell=numbers,
    status=st.integers(-5, 10),
    error=st.none() | st.builds(pb.CodeError, type_name=words, message=words, traceback=words),
    worker_death=st.none() | st.builds(pb.WorkerDeath, cause=st.integers(-3, 9), code=st.integers(-(2**31), 2**31 - 1)),
    final_answer=st.none() | st.builds(pb.FinalAnswer, text=words, type_name=words, length=numbers),
    variables=st.lists(st.builds(pb.Variable, name=words), max_size=3),
    stdout_bytes=st.integers(0, 2**64 - 1),
    seconds=st.floats(),
)
outputs = st.builds(
    pb.Output, cell=numbers, stream=st.integers(-2, 4), offset=st.integers(0, 2**64 - 1), data=st.binary(max_size=9)
)
counts = st.one_of(st.integers(0, 100), st.integers(2**53 - 30, 2**53 + 30), st.integers(2**63 - 9, 2**64 - 1))
messages = st.one_of(
    st.builds(pb.AttachRequest),
    st.builds(pb.AttachRequest, hello=st.builds(pb.Hello, protocol_version=numbers, python_version=words)),
    st.builds(pb.AttachRequest, output=outputs),
    st.builds(pb.AttachRequest, cell_ended=cell_ends),
    st.builds(pb.AttachRequest, stopping=st.builds(pb.Stopping, cell=numbers)),
    st.builds(pb.AttachRequest, time_check=st.builds(pb.TimeCheck, cell=numbers)),
)


@given(message=messages)
def test_a_message_is_a_value_or_a_violation(message: pb.AttachRequest) -> None:
    try:
        value = wire.parse_message(message)
    except wire.ProtocolViolation:
        return
    assert isinstance(value, wire.GuestMessage)
    if isinstance(value, wire.CellEnded):
        assert isinstance(value.status, CellStatus)
        assert value.seconds >= 0
        assert (value.death is not None) == (value.status is CellStatus.WORKER_DIED)
        if value.final is not None:
            assert value.final.length >= len(value.final.text)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(DecodeError, wire.ProtocolViolation):
        wire.parse_message(pb.AttachRequest.FromString(data))
    with contextlib.suppress(DecodeError, wire.BadQuestion):
        wire.parse_questions(pb.AskRequest.FromString(data))


@given(
    text=st.text(),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    head=st.integers(0, 40),
    tail=st.integers(0, 40),
)
def test_pieces_within_the_caps_fold_into_what_was_written(text: str, cuts: list[int], head: int, tail: int) -> None:
    data = text.encode()
    kept = data if len(data) <= head + tail else data[:head]
    fold = OutputFold(OutputStream.STDOUT, head, tail)
    edges = sorted({0, len(kept), *(cut for cut in cuts if cut < len(kept))})
    for start, end in itertools.pairwise(edges):
        fold.add(start, kept[start:end])
    if len(kept) < len(data) and tail:
        fold.add(len(data) - tail, data[-tail:])
    captured = fold.finish(len(data))
    assert captured.total_bytes == len(data)
    if len(kept) == len(data):
        assert (captured.text, captured.omitted_bytes) == (text, 0)
    else:
        assert captured.head == data[:head].decode("utf-8", "replace")
        assert captured.omitted_bytes == len(data) - head - tail


@given(pieces=st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=20)), max_size=10))
def test_no_pieces_make_the_host_hold_more_than_the_caps(pieces: list[tuple[int, bytes]]) -> None:
    fold = OutputFold(OutputStream.STDERR, 16, 8)
    with contextlib.suppress(OutputOverrun):
        for offset, data in pieces:
            fold.add(offset, data)
    captured = fold.finish(0)
    assert captured.total_bytes - captured.omitted_bytes <= 24


def answered(slots: Sequence[Slot]) -> pb.AskResponse:
    return pb.AskResponse.FromString(b"".join(wire_out.answer_pieces(slots)))


def test_answers_go_out_one_a_slot_whatever_a_model_says() -> None:
    response = answered([Answered("half \ud83d"), Failed(FailureReason.BUDGET, "used up"), Answered("")])
    assert [slot.WhichOneof("outcome") for slot in response.slots] == ["text", "failure", "text"]
    assert response.slots[0].text == "half ?"
    assert response.slots[1].failure.reason == pb.FAILURE_REASON_BUDGET


@pytest.mark.parametrize("reason", list(FailureReason))
def test_every_reason_has_a_word_on_the_wire(reason: FailureReason) -> None:
    [slot] = answered([Failed(reason, "")]).slots
    assert pb.FailureReason.Name(slot.failure.reason) == f"FAILURE_REASON_{reason.name}"


def test_a_concurrency_beyond_all_sense_is_held_down() -> None:
    batch = wire.parse_questions(pb.AskRequest(questions=[pb.Question()], max_concurrent=2**32 - 1))
    assert batch.max_concurrent <= 10_000


def test_answers_that_have_no_room_together_fail_in_their_own_slots() -> None:
    """10,000 different answers of 7 kB: they were paid for, and what fits is delivered."""
    slots = [Answered(f"{number:05}" + "x" * 7_000) for number in range(10_000)]
    data = b"".join(wire_out.answer_pieces(slots))
    assert len(data) < wire.MAX_MESSAGE_BYTES
    answers = pb.AskResponse.FromString(data).slots
    assert len(answers) == 10_000
    given = [slot.text for slot in answers if slot.WhichOneof("outcome") == "text"]
    assert given == [slot.text for slot in slots[: len(given)]]
    assert sum(map(len, given)) > wire_out.MAX_ANSWER_BYTES - 200_000
    lost = answers[len(given) :]
    assert {slot.failure.reason for slot in lost} == {pb.FAILURE_REASON_NO_ROOM}
    assert "ask fewer questions at once" in lost[0].failure.message


def test_a_small_answer_still_has_room_after_a_large_one_had_none() -> None:
    large = Answered("x" * (40 << 20))
    outcomes = [slot.WhichOneof("outcome") for slot in answered([large, large, Answered("small")]).slots]
    assert outcomes == ["text", "failure", "text"]


def test_one_answer_in_many_slots_is_encoded_once() -> None:
    pieces = wire_out.answer_pieces([Answered("x" * 1_000)] * 2 + [Answered("y")])
    assert pieces[0] is not pieces[2]
    same = Answered("x" * 1_000)
    pieces = wire_out.answer_pieces([same] * 10_000)
    assert all(piece is pieces[0] for piece in pieces)


def test_a_final_answer_is_cut_on_the_host_as_well() -> None:
    text = "é" * (wire.MAX_FINAL_BYTES // 2 + 1)
    message = pb.AttachRequest(
        cell_ended=pb.CellEnded(cell=1, status=pb.CELL_STATUS_OK, final_answer=pb.FinalAnswer(text=text))
    )
    ended = wire.parse_message(message)
    assert isinstance(ended, wire.CellEnded)
    final = ended.final
    assert final is not None
    assert (len(final.text.encode()), final.length) == (wire.MAX_FINAL_BYTES, len(text))


def test_the_largest_end_of_a_cell_that_is_taken_fits_into_a_response_of_the_service() -> None:
    wide, name = "\U0001f600", "\U0001f600" * 4_096
    text = wide * (1 << 20)
    message = pb.AttachRequest(
        cell_ended=pb.CellEnded(
            cell=1,
            status=pb.CELL_STATUS_ERROR,
            error=pb.CodeError(type_name=name, message=text, traceback=text),
            final_answer=pb.FinalAnswer(text=wide * (2 << 20) + "x" * (1 << 20), type_name=name),
            variables=[pb.Variable(name=name, type_name=name, size=name)] * wire.MAX_VARIABLES,
        )
    )
    ended = wire.parse_message(message)
    assert isinstance(ended, wire.CellEnded)
    printed = Captured("\ufffd" * 32_768, "\ufffd" * 32_768, 65_536, 0)
    result = ended.result(printed, printed, ended.seconds)
    record = Record(1, 0.0, 1, 2, SpanKind.CELL, 0, events.CellEnded(Outcome.OK, result))
    assert record_message(record).ByteSize() < MAX_RESPONSE_BYTES


@given(
    total=counts,
    length=counts,
    pieces=st.lists(st.tuples(counts, st.binary(min_size=1, max_size=5)), max_size=3),
    seconds=st.floats(),
)
def test_what_is_taken_of_a_guest_can_be_recorded_and_sent_on(
    total: int, length: int, pieces: list[tuple[int, bytes]], seconds: float
) -> None:
    """A run is recorded as JSON and watched as messages: a number too large for one spoils the run for good."""
    stream = pb.OUTPUT_STREAM_STDOUT
    message = pb.AttachRequest(
        cell_ended=pb.CellEnded(
            cell=1,
            status=pb.CELL_STATUS_OK,
            stdout_bytes=total,
            stderr_bytes=total,
            seconds=seconds,
            final_answer=pb.FinalAnswer(text="x", length=length),
            outputs=[pb.Output(cell=1, stream=stream, offset=offset, data=data) for offset, data in pieces],
        )
    )
    try:
        ended = wire.read_message(message.SerializeToString())
        assert isinstance(ended, wire.CellEnded)
        folded = OutputFold(OutputStream.STDOUT, 8, 8)
        chunks = [folded.add(output.offset, output.data) for output in ended.outputs]
    except (wire.ProtocolViolation, OutputOverrun):
        return
    captured = folded.finish(ended.stdout_bytes)
    result = ended.result(captured, captured, ended.seconds)
    result_message(result)
    for chunk in filter(None, chunks):
        chunk_message(chunk)
    record = Record(1, 0.0, 1, 2, SpanKind.CELL, 0, events.CellEnded(Outcome.OK, result))
    assert record_value(record_message(record)) == record
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
    msgspec.msgpack.encode(record)
