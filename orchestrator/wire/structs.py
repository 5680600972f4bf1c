"""Structs of `values` and `events` to protobuf messages and back, by the names that both sides share.

A field of one has the name of the other's. `X | None` is an `optional` field or an unset message; a `StrEnum` is an
enum whose constants have the type's name as their prefix (`Outcome.OK` is `OUTCOME_OK`); a tuple is a repeated field.
What to do for each field is worked out once a type.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from orchestrator.text import repaired

S = TypeVar("S", bound=msgspec.Struct)
W = TypeVar("W", bound=StrEnum)

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}

_Write = Callable[[Message, Any], None]
_Read = Callable[[Message], Any]


class UnknownWord(ValueError):
    """A message holds an enum constant that this release does not know."""


def fill(message: Message, value: msgspec.Struct) -> None:
    """Writes the fields of `value` into a message of its kind."""
    for name, write, _ in _plan(type(value), message.DESCRIPTOR):
        write(message, getattr(value, name))


def parse(kind: type[S], message: Message) -> S:
    """The value that the message holds. Raises `UnknownWord`."""
    return kind(**{name: read(message) for name, _, read in _plan(kind, message.DESCRIPTOR)})


def clean(text: str) -> str:
    """Text that protobuf takes."""
    return repaired(text)


@cache
def _plan(kind: type[msgspec.Struct], message: Any) -> tuple[tuple[str, _Write, _Read], ...]:
    plan = []
    for field in msgspec.structs.fields(kind):
        descriptor = message.fields_by_name[field.name]
        write, read = _field(field.name, field.type, descriptor)
        plan.append((field.name, write, read))
    return tuple(plan)


def _field(name: str, hint: Any, descriptor: FieldDescriptor) -> tuple[_Write, _Read]:
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        write_inner, read_inner = _field(name, inner, descriptor)
        return (
            lambda message, value: None if value is None else write_inner(message, value),
            lambda message: read_inner(message) if message.HasField(name) else None,
        )
    if get_origin(hint) is tuple:
        return _repeated(name, get_args(hint)[0])
    if issubclass(hint, msgspec.Struct):
        return _nested(name, hint)
    if issubclass(hint, StrEnum):
        return _enum(name, hint, descriptor.enum_type)
    if issubclass(hint, str):
        return lambda message, value: setattr(message, name, clean(value)), lambda message: getattr(message, name)
    if issubclass(hint, int):
        return lambda message, value: write_whole(message, name, value), lambda message: getattr(message, name)
    return lambda message, value: setattr(message, name, value), lambda message: getattr(message, name)


def write_whole(message: Message, name: str, value: int) -> None:
    """The nearest that the field holds: a recording that was taken in may count beyond it, and must be told anyway."""
    try:
        setattr(message, name, value)
    except ValueError:
        low, high = _RANGES[message.DESCRIPTOR.fields_by_name[name].cpp_type]
        setattr(message, name, min(max(value, low), high))


def _repeated(name: str, of: Any) -> tuple[_Write, _Read]:
    if issubclass(of, msgspec.Struct):

        def write(message: Message, values: Any) -> None:
            into = getattr(message, name)
            for value in values:
                fill(into.add(), value)

        return write, lambda message: tuple(parse(of, each) for each in getattr(message, name))
    return (
        lambda message, values: getattr(message, name).extend(clean(value) for value in values),
        lambda message: tuple(getattr(message, name)),
    )


def _nested(name: str, hint: type[msgspec.Struct]) -> tuple[_Write, _Read]:
    def write(message: Message, value: Any) -> None:
        inner = getattr(message, name)
        inner.SetInParent()  # one that holds only defaults is there all the same
        fill(inner, value)

    return write, lambda message: parse(hint, getattr(message, name))


def _enum(name: str, hint: type[StrEnum], descriptor: EnumDescriptor | None) -> tuple[_Write, _Read]:
    assert descriptor is not None  # or the proto has no enum where the value has one
    to_number, from_number = enum_tables(hint, descriptor)

    def read(message: Message) -> Any:
        number = getattr(message, name)
        try:
            return from_number[number]
        except KeyError:
            raise UnknownWord(f"{name}: {hint.__name__} has no constant {number}") from None

    return lambda message, value: setattr(message, name, to_number[value]), read


def enum_tables(hint: type[W], descriptor: EnumDescriptor) -> tuple[dict[W, Any], dict[int, W]]:
    """Numbers by word and words by number. A word without a constant is a fault of the protos: KeyError."""
    prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in descriptor.name).lstrip("_")
    to_number = {word: descriptor.values_by_name[f"{prefix}_{word.name}"].number for word in hint}
    return to_number, {number: word for word, number in to_number.items()}
