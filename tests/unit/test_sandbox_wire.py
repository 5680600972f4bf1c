"""Whatever bytes a guest sends: a value of known types, or a refusal that repeats nothing of them."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire
from orchestrator.sandbox.output import OutputFold, OutputOverrun
from orchestrator.values import Answered, CellStatus, Failed, FailureReason, OutputStream

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
messages = st.one_of(
    st.builds(pb.AttachRequest),
    st.builds(pb.AttachRequest, hello=st.builds(pb.Hello, protocol_version=numbers, python_version=words)),
    st.builds(pb.AttachRequest, output=outputs),
    st.builds(pb.AttachRequest, cell_ended=cell_ends),
)


@given(message=messages)
def test_a_message_is_a_value_or_a_violation(message: pb.AttachRequest) -> None:
    try:
        value = wire.parse_message(message)
    except wire.ProtocolViolation:
        return
    assert isinstance(value, wire.GuestMessage)
    if isinstance(value, wire.CellEnded):
        assert isinstance(value.result.status, CellStatus)
        assert value.result.seconds >= 0
        assert (value.result.death is not None) == value.result.state_lost
        if value.result.final is not None:
            assert value.result.final.length >= len(value.result.final.text)


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


def test_answers_go_out_one_a_slot_whatever_a_model_says() -> None:
    response = wire.answer_message([Answered("half \ud83d"), Failed(FailureReason.BUDGET, "used up"), Answered("")])
    assert [slot.WhichOneof("outcome") for slot in response.slots] == ["text", "failure", "text"]
    assert response.slots[0].text == "half ?"
    assert response.slots[1].failure.reason == pb.FAILURE_REASON_BUDGET


@pytest.mark.parametrize("reason", list(FailureReason))
def test_every_reason_has_a_word_on_the_wire(reason: FailureReason) -> None:
    [slot] = wire.answer_message([Failed(reason, "")]).slots
    assert pb.FailureReason.Name(slot.failure.reason) == f"FAILURE_REASON_{reason.name}"


def test_a_concurrency_beyond_all_sense_is_held_down() -> None:
    batch = wire.parse_questions(pb.AskRequest(questions=[pb.Question()], max_concurrent=2**32 - 1))
    assert batch.max_concurrent <= 10_000
