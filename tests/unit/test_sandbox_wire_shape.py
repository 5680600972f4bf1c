"""What a message holds is counted before it is built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire
from orchestrator.sandbox.wire_shape import Malformed, TooManyFields, fields

EMPTY_QUESTION = b"\x0a\x00"


@given(st.lists(st.text(max_size=200), max_size=20), st.integers(0, 2**32 - 1))
def test_the_outline_is_that_of_the_message(prompts: list[str], max_concurrent: int) -> None:
    request = pb.AskRequest(questions=[pb.Question(prompt=each) for each in prompts], max_concurrent=max_concurrent)
    found = list(fields(request.SerializeToString(), 100))
    assert [number for number, _ in found if number == 1] == [1] * len(prompts)
    payloads = [bytes(payload) for number, payload in found if number == 1]
    assert [pb.Question.FromString(each).prompt for each in payloads] == prompts


@given(st.binary(max_size=300))
def test_any_bytes_have_an_outline_or_are_refused(data: bytes) -> None:
    try:
        for number, payload in fields(data, 50):
            assert number >= 0
            assert len(payload) <= len(data)
    except (Malformed, TooManyFields):
        pass


def test_no_more_fields_are_looked_at_than_are_allowed() -> None:
    outline = fields(EMPTY_QUESTION * 1_000_000, 10)
    assert [next(outline)[0] for _ in range(10)] == [1] * 10
    with pytest.raises(TooManyFields):
        next(outline)


class _Unbuilt:
    @staticmethod
    def FromString(data: bytes) -> None:
        raise AssertionError("the message was built")


def test_a_million_empty_questions_are_refused_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pb, "AskRequest", _Unbuilt)
    with pytest.raises(wire.TooManyQuestions):
        wire.read_questions(EMPTY_QUESTION * 1_000_000)


def test_a_million_variables_end_the_sandbox_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = b"\x32\x00" * 1_000_000
    length = len(variables)
    size = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14 & 0x7F])
    monkeypatch.setattr(pb, "AttachRequest", _Unbuilt)
    with pytest.raises(wire.ProtocolViolation):
        wire.read_message(b"\x2a" + size + variables)


@pytest.mark.parametrize("data", [b"\x0a\x05abc", b"\x0b", b"\xff" * 11, b"\x0a"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(wire.BadQuestion):
        wire.read_questions(data)
    with pytest.raises(wire.ProtocolViolation):
        wire.read_message(data)
