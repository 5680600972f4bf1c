"""Writes the guest's messages as one plain Python module: a class each, which encodes and decodes itself.

The agent imports it in place of protobuf, which was a fifth of its start. What it has of protobuf is what the guest's
proto uses; anything else is refused here, while code is generated. Why, and what it costs: docs/decisions/0018.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

_WIRE = Path(__file__).with_name("guest_wire.py")
_VARINT, _FIXED64, _SIZED = 0, 1, 2

_F = FieldDescriptorProto
# Python's type, the default, the wire type.
_TYPES: dict[int, tuple[str, str, int]] = {
    _F.TYPE_UINT32: ("int", "0", _VARINT),
    _F.TYPE_UINT64: ("int", "0", _VARINT),
    _F.TYPE_INT32: ("int", "0", _VARINT),
    _F.TYPE_ENUM: ("int", "0", _VARINT),
    _F.TYPE_BOOL: ("bool", "False", _VARINT),
    _F.TYPE_DOUBLE: ("float", "0.0", _FIXED64),
    _F.TYPE_STRING: ("str", '""', _SIZED),
    _F.TYPE_BYTES: ("bytes", 'b""', _SIZED),
    _F.TYPE_MESSAGE: ("", "None", _SIZED),
}
_ENCODED = {
    _F.TYPE_UINT32: "_varint(value, 32)",
    _F.TYPE_UINT64: "_varint(value, 64)",
    _F.TYPE_INT32: "_int32(value)",
    _F.TYPE_ENUM: "_int32(value)",
}
_CUT = {
    _F.TYPE_UINT32: "value &= 0xFFFFFFFF",
    _F.TYPE_INT32: "value = _as_int32(value)",
    _F.TYPE_ENUM: "value = _as_int32(value)",
}
_TAKEN = {"self", "encode", "decode", "_merge"}


class UnsupportedProto(Exception):
    """The proto uses what the guest's messages do not have."""


def module_of(files: FileDescriptorSet) -> str:
    """The module's source.

    Raises:
        UnsupportedProto: there is not exactly one proto, or it uses a feature that is not done here.
    """
    if len(files.file) != 1:
        raise UnsupportedProto(f"the guest has one proto, not {len(files.file)}")
    (proto,) = files.file
    if proto.syntax != "proto3" or proto.dependency or proto.extension:
        raise UnsupportedProto(f"{proto.name}: not proto3, or with imports or extensions")
    wire = _WIRE.read_text(encoding="utf-8")
    lines = [
        f'"""The messages of {proto.package}. Generated from protos/ by protos/generate.py: do not edit."""\n',
        wire[wire.index("from __future__") :],
    ]
    for service in proto.service:
        lines += _service(proto, service)
    for enum in proto.enum_type:
        lines += _enum(enum)
    for message in proto.message_type:
        lines += _message(proto, message)
    return "\n".join(lines) + "\n"


def _service(proto: FileDescriptorProto, service: ServiceDescriptorProto) -> Iterator[str]:
    full_name = f"{proto.package}.{service.name}"
    yield f'SERVICE = "{full_name}"'
    for method in service.method:
        yield f'{method.name.upper()}_METHOD = "/{full_name}/{method.name}"'


def _enum(enum: EnumDescriptorProto) -> Iterator[str]:
    yield ""
    yield from (f"{value.name} = {value.number}" for value in enum.value)
    yield f"{enum.name} = {{"
    yield from (f'    "{value.name}": {value.name},' for value in enum.value)
    yield "}"


class _Field:
    def __init__(self, proto: FileDescriptorProto, message: DescriptorProto, field: FieldDescriptorProto) -> None:
        where = f"{proto.package}.{message.name}.{field.name}"
        if field.type not in _TYPES:
            raise UnsupportedProto(f"{where}: fields of {_F.Type.Name(field.type)} are not done")
        self.type = field.type
        self.name = field.name
        self.repeated = field.label == _F.LABEL_REPEATED
        self.is_message = field.type == _F.TYPE_MESSAGE
        if self.repeated and not self.is_message:
            raise UnsupportedProto(f"{where}: repeated fields are done of messages only")
        if field.name in _TAKEN or keyword.iskeyword(field.name):
            raise UnsupportedProto(f"{where}: Python, or the class, has the name already")
        self.python, default, self.wire_type = _TYPES[field.type]
        if self.is_message:
            package, _, self.python = field.type_name.rpartition(".")
            if package != f".{proto.package}":
                raise UnsupportedProto(f"{where}: {field.type_name} is not a message at the top of this proto")
        self.tag = field.number << 3 | self.wire_type
        self.number = field.number
        in_oneof = field.HasField("oneof_index") and not field.proto3_optional
        self.siblings = [
            other.name
            for other in message.field
            if in_oneof and other.HasField("oneof_index") and other.oneof_index == field.oneof_index
            if other.number != field.number
        ]
        self.has_presence = not self.repeated and (self.is_message or field.HasField("oneof_index"))
        container = f"list[{self.python}]" if self.repeated else self.python
        if self.repeated or self.has_presence:
            container, default = f"{container} | None", "None"
        self.parameter = f"{self.name}: {container} = {default}"

    @property
    def tag_bytes(self) -> bytes:
        encoded, left = bytearray(), self.tag
        while left > 127:
            encoded.append(left & 127 | 128)
            left >>= 7
        return bytes([*encoded, left])

    def assigned(self) -> str:
        given = f"[] if {self.name} is None else {self.name}" if self.repeated else self.name
        return f"self.{self.name} = {given}"

    def encoder(self) -> Iterator[str]:
        name, tag = f"self.{self.name}", repr(self.tag_bytes)
        sized = f"    out += ({tag}, _BYTE[size] if (size := len(raw)) < 128 else _varint(size, 32), raw)"
        if self.repeated:
            yield from (f"for raw in map({self.python}.encode, {name}):", sized)
        elif self.type == _F.TYPE_DOUBLE:
            yield from (f"if (raw := _double({name})) != _ZERO:", f"    out += ({tag}, raw)")
        elif self.type == _F.TYPE_BOOL:
            true, false = self.tag_bytes + b"\1", self.tag_bytes + b"\0"
            if self.has_presence:
                yield from (f"if {name} is not None:", f"    out.append({true!r} if {name} else {false!r})")
            else:
                yield from (f"if {name}:", f"    out.append({true!r})")
        elif self.wire_type == _VARINT:
            yield f"if (value := {name}) is not None:" if self.has_presence else f"if value := {name}:"
            yield f"    out += ({tag}, _BYTE[value] if 0 <= value < 128 else {_ENCODED[self.type]})"
        else:
            yield f"if {name} is not None:" if self.has_presence else f"if {name}:"
            yield f"    raw = {name}" + ("" if self.type == _F.TYPE_BYTES else ".encode()")
            yield sized

    def decoder(self) -> Iterator[str]:
        name = f"self.{self.name}"
        if self.wire_type == _VARINT:
            yield from ("value = data[pos]", "pos += 1", "if value > 127:")
            yield "    value, pos = _read_varint(data, pos - 1)"
            if self.type in _CUT:
                yield f"    {_CUT[self.type]}"
            yield f"{name} = value != 0" if self.type == _F.TYPE_BOOL else f"{name} = value"
            return
        if self.wire_type == _FIXED64:
            yield from (f"({name},) = _read_double(data, pos)", "pos += 8")
            return
        yield from ("size = data[pos]", "pos += 1", "if size > 127:")
        yield "    size, pos = _read_short_varint(data, pos - 1)"
        yield "stop = pos + size"
        others = "".join(f"self.{sibling} = " for sibling in self.siblings)
        if self.repeated:
            yield from (f"{name}.append({self.python}())", f"{name}[-1]._merge(data, pos, stop)")
        elif self.is_message:
            yield f"if {name} is None:"
            if others:
                yield f"    {others}None"
            yield from (f"    {name} = {self.python}()", f"{name}._merge(data, pos, stop)")
        else:
            yield f"{name} = data[pos:stop]" + (".decode()" if self.type == _F.TYPE_STRING else "")
            if others:
                yield f"{others}None"
        yield "pos = stop"


def _message(proto: FileDescriptorProto, message: DescriptorProto) -> Iterator[str]:
    if message.name in ("Message", "DecodeError"):
        raise UnsupportedProto(f"{message.name}: the module has the name already")
    if message.nested_type or message.enum_type or message.extension_range:
        raise UnsupportedProto(f"{message.name}: maps, nested types and extensions are not done")
    fields = [_Field(proto, message, field) for field in sorted(message.field, key=lambda field: field.number)]
    yield from ("", "", f"class {message.name}(Message):")
    yield f"    __slots__ = {tuple(field.name for field in fields)}"
    if fields:
        yield from ("", f"    def __init__(self, *, {', '.join(field.parameter for field in fields)}) -> None:")
        yield from (f"        {field.assigned()}" for field in fields)
    yield from ("", "    def encode(self) -> bytes:")
    if fields:
        yield "        out: list[bytes] = []"
        yield from (f"        {line}" for field in fields for line in field.encoder())
        yield '        return b"".join(out)'
    else:
        yield '        return b""'
    yield from ("", "    def _merge(self, data: bytes, pos: int, end: int) -> None:")
    yield from ("        while pos < end:", "            tag = data[pos]", "            pos += 1")
    yield from ("            if tag > 127:", "                tag, pos = _read_short_varint(data, pos - 1)")
    for index, field in enumerate(fields):
        yield f"            {'elif' if index else 'if'} tag == {field.tag}:"
        yield from (f"                {line}" for line in field.decoder())
    skip = f"pos = _skip(data, pos, tag, {tuple(field.number for field in fields)})"
    yield from ("            else:", f"                {skip}") if fields else (f"            {skip}",)
    yield from ("        if pos != end:", '            raise DecodeError("a field is cut short")')
