"""Whatever bytes come from a guest, parsing ends in a value or in the one exception that says so."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.folds.printable import one_line, printable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire
from orchestrator.sandbox.output import OutputFold, OutputOverrun
from orchestrator.values import OutputStream

numbers = st.integers(0, 2**32 - 1)
enums = st.integers(-(2**31), 2**31 - 1)
texts = st.text(max_size=40)


def parsed(data: bytes) -> None:
    """What the host does with a frame of a guest. Raises nothing else than what ends or refuses it."""
    try:
        wire.parse_message(pb.AttachRequest.FromString(data))
    except (DecodeError, wire.ProtocolViolation):
        pass
    try:
        wire.parse_questions(pb.AskRequest.FromString(data))
    except (DecodeError, wire.BadQuestion):
        pass


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes) -> None:
    parsed(data)


@given(numbers, enums, texts, st.floats(allow_nan=True), enums, enums, st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_any_end_of_a_cell(
    cell: int, status: int, text: str, seconds: float, cause: int, code: int, length: int
) -> None:
    ended = pb.CellEnded(cell=cell, status=status, seconds=seconds, stdout_bytes=length)  # type: ignore[arg-type]
    ended.error.message = text
    if code % 2:
        ended.worker_death.cause = cause  # type: ignore[assignment]
        ended.worker_death.code = code
    ended.final_answer.text, ended.final_answer.length = text, length
    parsed(pb.AttachRequest(cell_ended=ended).SerializeToString())


@given(st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=60)), max_size=20), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_output_never_holds_more_than_its_caps(pieces: list[tuple[int, bytes]], total: int) -> None:
    fold = OutputFold(OutputStream.STDOUT, 32, 16)
    try:
        for offset, data in pieces:
            fold.add(offset, data)
    except OutputOverrun:
        pass
    captured = fold.finish(total)
    assert len(captured.head) + len(captured.tail) <= 32 + 16
    assert captured.total_bytes >= captured.omitted_bytes >= 0


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_printable_text_has_no_controls_and_stays_so(text: str) -> None:
    safe = printable(text)
    assert not any(ord(character) < 32 and character not in "\n\t" for character in safe)
    assert not any(0x7F <= ord(character) < 0xA0 for character in safe)
    assert "\n" not in one_line(text)
    safe.encode("utf-8")
