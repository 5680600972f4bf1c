"""The guest's messages twice, by protobuf and by the guest's own module, and what both must have in common."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import strategies as st

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from tests.unit.guest_modules import guest_messages

KINDS = sorted(pb.DESCRIPTOR.message_types_by_name)

_F = FieldDescriptor
_WIRE_TYPES = {_F.TYPE_DOUBLE: 1, _F.TYPE_STRING: 2, _F.TYPE_BYTES: 2, _F.TYPE_MESSAGE: 2}
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    _F.TYPE_UINT32: st.integers(0, 200) | st.integers(0, 2**32 - 1),
    _F.TYPE_UINT64: st.integers(0, 200) | st.integers(0, 2**64 - 1),
    _F.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    _F.TYPE_ENUM: st.integers(-2, 12) | st.integers(-(2**31), 2**31 - 1),
    _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_DOUBLE: st.floats() | st.just(-0.0),
    _F.TYPE_STRING: st.text(max_size=5) | st.integers(120, 140).map(lambda size: "é" * size),
    _F.TYPE_BYTES: st.binary(max_size=5) | st.integers(120, 140).map(bytes),
}


def theirs(kind: str) -> type[Message]:
    """protobuf's class of this message."""
    found: type[Message] = getattr(pb, kind)
    return found


def own(kind: str) -> Any:
    """The guest's class of this message."""
    return getattr(guest_messages, kind)


@st.composite
def filled(draw: st.DrawFn, kind: str) -> Message:
    """A message of protobuf's, some of its fields set, some to their default."""
    message = theirs(kind)()
    for field in message.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if not field.message_type:
            setattr(message, field.name, draw(_SCALARS[field.type]))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(filled(field.message_type.name), max_size=3)))
        else:
            part = getattr(message, field.name)
            part.SetInParent()
            part.MergeFrom(draw(filled(field.message_type.name)))
    return message


def values_of(message: Message) -> dict[str, Any]:
    """A protobuf message's fields; None where a field that has presence is not set."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            values[field.name] = [values_of(part) for part in value]
        elif field.has_presence and not message.HasField(field.name):
            values[field.name] = None
        else:
            values[field.name] = values_of(value) if field.type == _F.TYPE_MESSAGE else value
    return values


def own_values_of(message: Any) -> dict[str, Any]:
    """The same of a message of the guest's."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(part) for part in value]
        return own_values_of(value) if isinstance(value, guest_messages.Message) else value

    return {name: plain(getattr(message, name)) for name in message.__slots__}


def own_of(message: Message) -> Any:
    """The guest's message of the same values, given to its constructor."""
    given = {}
    for field, value in message.ListFields():
        if field.type == _F.TYPE_MESSAGE:
            value = [own_of(part) for part in value] if field.is_repeated else own_of(value)
        given[field.name] = value
    return own(message.DESCRIPTOR.name)(**given)


def agree(kind: str, data: bytes) -> bool:
    """Both take the bytes for the same message, or none does; whether they do.

    Save for what only the guest's refuses: see `has_foreign_fields`.
    """
    try:
        expected = theirs(kind).FromString(data)
    except DecodeError:
        expected = None
    try:
        found = own(kind).decode(data)
    except guest_messages.DecodeError:
        assert expected is None or has_foreign_fields(kind, data)
        return False
    assert expected is not None
    assert not has_foreign_fields(kind, data)
    assert repr(own_values_of(found)) == repr(values_of(expected))  # as text, where nan is equal to itself
    expected.DiscardUnknownFields()
    assert found.encode() == expected.SerializeToString(deterministic=True)
    return True


def has_foreign_fields(kind: str, data: bytes) -> bool:
    """A known field of another wire type, or a group, which protobuf keeps: no encoder of this proto writes them.

    Or one of number 0, which protobuf keeps in a message without fields only. `data`: bytes that protobuf takes.
    """
    # To a message without fields all of them are unknown, and so are listed as they are on the wire.
    fields: Any = UnknownFieldSet(pb.Heartbeat.FromString(data))
    for field in fields:
        known = theirs(kind).DESCRIPTOR.fields_by_number.get(field.field_number)
        if (
            field.wire_type == 3
            or not field.field_number
            or (known and field.wire_type != _WIRE_TYPES.get(known.type, 0))
        ):
            return True
        if known and known.message_type and has_foreign_fields(known.message_type.name, field.data):
            return True
    return False
