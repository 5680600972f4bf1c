"""What the guest's messages need of protobuf's wire format: the head of the module that `guest_codec.py` writes.

It is imported while a sandbox starts, so it imports nothing that the agent does not import anyway.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class DecodeError(ValueError):
    """The bytes are no message of this type."""


class Message:
    """A message; of the fields of a oneof at most one is given."""

    __slots__ = ()

    def encode(self) -> bytes:
        """The message's bytes: the fields in the order of their numbers, those at their default left out.

        Raises:
            ValueError: a number does not fit into its field, or a text has a lone surrogate.
        """
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The message of these bytes; fields of numbers that it does not know are left out.

        Stricter than protobuf in what no encoder of the same proto writes: it refuses a known field of another wire
        type and a group, which protobuf takes for unknown fields, and a field of number 0 in every message.

        Raises:
            DecodeError: they are no message of this type.
        """
        message = cls()
        try:
            message._merge(data, 0, len(data))
        except (IndexError, UnicodeDecodeError, struct.error) as error:
            raise DecodeError(str(error)) from None
        return message

    def _merge(self, data: bytes, pos: int, end: int) -> None:
        """Reads fields from `pos` on, which may first be seen to be cut short when `end` is passed."""
        raise NotImplementedError


_double = struct.Struct("<d").pack
_read_double = struct.Struct("<d").unpack_from
_ZERO = bytes(8)
_BYTE = tuple(bytes([number]) for number in range(128))


def _varint(value: int, bits: int) -> bytes:
    if 127 < value < 1 << 14:  # as most that take more than one byte
        return bytes((value & 127 | 128, value >> 7))
    if value >> bits:
        raise ValueError(f"{value} does not fit into {bits} bits")
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _int32(value: int) -> bytes:
    if not -1 << 31 <= value < 1 << 31:
        raise ValueError(f"{value} does not fit into an int32")
    return _varint(value & (1 << 64) - 1, 64)


def _as_int32(value: int) -> int:
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def _read_varint(data: bytes, pos: int) -> tuple[int, int]:
    """An unsigned number, cut to 64 bits as protobuf cuts it, and where it ends."""
    value = shift = 0
    while (byte := data[pos]) > 127:
        value |= (byte & 127) << shift
        pos += 1
        shift += 7
        if shift > 63:
            raise DecodeError("a varint of more than ten bytes")
    return (value | byte << shift) & (1 << 64) - 1, pos + 1


def _read_short_varint(data: bytes, pos: int) -> tuple[int, int]:
    """A tag or a length, and where it ends."""
    value, end = _read_varint(data, pos)
    if end - pos > 5 or value >> 32:
        raise DecodeError("a tag or a length of more than 32 bits")
    return value, end


def _skip(data: bytes, pos: int, tag: int, known: tuple[int, ...]) -> int:
    """Where an unknown field ends whose value begins at `pos`; `known` are the numbers of the message's fields."""
    number, wire_type = tag >> 3, tag & 7
    if not number or number in known:
        raise DecodeError(f"field {number} with wire type {wire_type}")
    if wire_type == 0:
        return _read_varint(data, pos)[1]
    if wire_type == 1:
        return pos + 8
    if wire_type == 2:
        size, pos = _read_short_varint(data, pos)
        return pos + size
    if wire_type == 5:
        return pos + 4
    raise DecodeError(f"wire type {wire_type}")
