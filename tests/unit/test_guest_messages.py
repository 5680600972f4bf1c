"""The guest's messages, which do without protobuf, held against protobuf's own: the same bytes, the same refusals."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from tests.unit.guest_modules import guest_messages as own
from tests.unit.message_pairs import KINDS, agree, filled, own_of, own_values_of, theirs, values_of

kinds = st.sampled_from(KINDS)
messages: st.SearchStrategy[Message] = kinds.flatmap(filled)


def test_names_and_numbers_are_those_of_the_proto() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == own.SERVICE
    methods = {name: f"/{service.full_name}/{name}" for name in service.methods_by_name}
    assert methods == {"Attach": own.ATTACH_METHOD, "Ask": own.ASK_METHOD}
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        numbers = {value.name: value.number for value in enum.values}
        assert getattr(own, name) == numbers
        assert all(getattr(own, constant) == number for constant, number in numbers.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_no_fields_set_is_no_bytes(kind: str) -> None:
    made = getattr(own, kind)()
    assert made.encode() == b""
    assert own_values_of(made) == values_of(theirs(kind)())
    assert agree(kind, b"")


@given(messages)
def test_what_protobuf_writes_is_read_and_written_again(message: Message) -> None:
    data = message.SerializeToString(deterministic=True)
    made = getattr(own, message.DESCRIPTOR.name).decode(data)
    assert repr(own_values_of(made)) == repr(values_of(message))
    assert made.encode() == data


@given(messages)
def test_what_the_guest_writes_protobuf_would_have_written(message: Message) -> None:
    data = own_of(message).encode()
    assert data == message.SerializeToString(deterministic=True)
    assert repr(values_of(type(message).FromString(data))) == repr(values_of(message))


@given(kinds.flatmap(lambda kind: st.tuples(filled(kind), filled(kind))))
def test_a_message_that_comes_in_two_parts_is_merged(parts: tuple[Message, Message]) -> None:
    assert agree(parts[0].DESCRIPTOR.name, b"".join(part.SerializeToString() for part in parts))


@given(kinds, st.binary(max_size=40))
def test_any_bytes_are_a_message_to_both_or_to_none(kind: str, data: bytes) -> None:
    agree(kind, data)


@given(messages, st.integers(0, 1 << 10), st.integers(0, 3), st.binary(max_size=3))
def test_changed_messages_are_messages_to_both_or_to_none(message: Message, at: int, length: int, new: bytes) -> None:
    data = message.SerializeToString()
    start = at % (len(data) + 1)
    agree(message.DESCRIPTOR.name, data[:start] + new + data[start + length :])
    agree(message.DESCRIPTOR.name, data[:start])


LONG = b"\xff" * 9


@pytest.mark.parametrize(
    ("kind", "data", "taken"),
    [
        ("RunCell", b"\x08" + LONG + b"\x01", True),  # 64 bits, cut to 32
        ("RunCell", b"\x08" + LONG + b"\x02", True),  # 65 bits
        ("Open", b"\x18" + LONG + b"\x02\x10" + b"\x80" * 9 + b"\x02", True),  # cut to 64, of which none is left
        ("RunCell", b"\x08" + LONG + b"\x80\x01", False),  # eleven bytes
        ("RunCell", b"\x08\x80\x80\x00", True),  # longer than it need be
        ("RunCell", b"\x88\x80\x80\x80\x00\x07", True),
        ("RunCell", b"\x88\x80\x80\x80\x80\x00\x07", False),  # a tag of six bytes
        ("RunCell", b"\x88\x80\x80\x80\x10\x07", False),  # a tag of 33 bits
        ("RunCell", b"\x00\x00", False),  # a field of number 0
        ("Heartbeat", b"\x00\x00", False),  # protobuf skips it here
        ("RunCell", b"\x12\x80\x80\x80\x80\x00", True),
        ("RunCell", b"\x12\x80\x80\x80\x80\x80\x00", False),  # a length of six bytes
        ("RunCell", b"\x12\xff\xff\xff\xff\x0f", False),
        ("RunCell", b"\x12\x02x", False),
        ("RunCell", b"\x12\x02\xed\xa0", False),
        ("RunCell", b"\x12\x03\xed\xa0\x80", False),  # a surrogate
        ("RunCell", b"\x19" + bytes(7), False),
        ("RunCell", b"\x78\x01\x79" + bytes(8) + b"\x7a\x01x\x7d" + bytes(4) + b"\x08\x05", True),  # unknown ones
        ("RunCell", b"\x7d" + bytes(3), False),
        ("RunCell", b"\x7a\x05x", False),
        ("RunCell", b"\x7e", False),  # wire types that there are not
        ("RunCell", b"\x7f", False),
        ("RunCell", b"\x7c", False),  # the end of no group
        ("RunCell", b"\x7b\x7c", False),  # a group: protobuf skips it
        ("RunCell", b"\x0d" + bytes(4), False),  # a fixed32 in the place of a varint: protobuf skips it
        ("Open", b"\x10\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", True),  # a bool is any bit of 64
        ("WorkerDeath", b"\x08\xff\xff\xff\xff\x0f\x10" + LONG + b"\x01", True),  # below 0
        ("AttachResponse", b"\x12\x02\x08\x80\x08\x01", False),  # a number that goes on after its message
        ("AttachResponse", b"\x12\x03\x12\x02x\x1a\x00", False),  # a text that does
        ("AttachResponse", b"\x12\x02\x08\x01\x0a\x00\x12\x02\x12\x00", True),  # one of a oneof, another, the first
        ("Slot", b"\x0a\x01x\x12\x00", True),
        ("Slot", b"\x12\x00\x0a\x00", True),
    ],
)
def test_what_is_at_the_edges_of_the_wire_format(kind: str, data: bytes, taken: bool) -> None:
    assert agree(kind, data) is taken


@pytest.mark.parametrize(
    "message",
    [
        own.RunCell(cell=-1),
        own.RunCell(cell=1 << 32),
        own.Output(offset=-1),
        own.Output(offset=1 << 64),
        own.WorkerDeath(code=1 << 31),
        own.WorkerDeath(cause=-(1 << 31) - 1),
        own.RunCell(code="\ud800"),
    ],
)
def test_what_no_field_can_hold_is_not_written(message: Any) -> None:
    with pytest.raises(ValueError, match=r"does not fit|surrogates"):
        message.encode()
