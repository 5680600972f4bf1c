"""What the generator of the guest's messages refuses: what it would else leave out without a word."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

sys.path.insert(0, str(Path(__file__).parents[2] / "protos"))

import guest_codec

F = FieldDescriptorProto


def _proto(change: Callable[[FileDescriptorProto], object]) -> FileDescriptorSet:
    field = F(name="a", number=1, type=F.TYPE_UINT32, label=F.LABEL_OPTIONAL)
    message = DescriptorProto(name="M", field=[field])
    proto = FileDescriptorProto(name="a.proto", package="p", syntax="proto3", message_type=[message])
    change(proto)
    return FileDescriptorSet(file=[proto])


def _field(**given: object) -> Callable[[FileDescriptorProto], object]:
    return lambda proto: proto.message_type[0].field[0].MergeFrom(F(**given))  # type: ignore[arg-type]


def test_a_plain_proto_is_done() -> None:
    compile(guest_codec.module_of(_proto(lambda _: None)), "guest_messages.py", "exec")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_field(type=F.TYPE_SINT32), r"p\.M\.a: fields of TYPE_SINT32"),
        (_field(type=F.TYPE_FIXED64), "TYPE_FIXED64"),
        (_field(type=F.TYPE_GROUP), "TYPE_GROUP"),
        (_field(label=F.LABEL_REPEATED), "repeated fields are done of messages only"),
        (_field(name="class"), "has the name already"),
        (_field(name="encode"), "has the name already"),
        (_field(type=F.TYPE_MESSAGE, type_name=".p.M.Entry"), r"\.p\.M\.Entry is not a message at the top"),
        (lambda proto: proto.message_type[0].nested_type.add(name="AEntry"), "maps, nested types"),
        (lambda proto: proto.message_type.add(name="Message"), "has the name already"),
        (lambda proto: proto.dependency.append("b.proto"), "imports"),
        (lambda proto: setattr(proto, "syntax", "proto2"), "not proto3"),
    ],
)
def test_what_is_not_done_is_refused(change: Callable[[FileDescriptorProto], object], said: str) -> None:
    with pytest.raises(guest_codec.UnsupportedProto, match=said):
        guest_codec.module_of(_proto(change))
    with pytest.raises(guest_codec.UnsupportedProto):
        guest_codec.module_of(FileDescriptorSet())
