"""The outline of a protobuf message, read before the message is built. Pure.

Two bytes on the wire can make a whole object: a megabyte of empty submessages would cost a hundred times as much
memory, and the loop's time, before a cap on their number could be looked at (measured: 1e6 of them, 54 MiB and 0.23 s).
"""

from __future__ import annotations

from collections.abc import Iterator

_MAX_VARINT_BYTES = 10


class Malformed(Exception):
    """The bytes are no message of ours."""


class TooManyFields(Exception):
    """More fields than any message that keeps the protocol has."""


def fields(data: bytes | memoryview, most: int) -> Iterator[tuple[int, memoryview]]:
    """The top-level fields: number and payload (empty unless it is length-delimited), in order.

    Raises `TooManyFields` at the one after `most`, so that at most so many are looked at; `Malformed`.
    """
    view, at, seen = memoryview(data), 0, 0
    while at < len(view):
        seen += 1
        if seen > most:
            raise TooManyFields
        tag, at = _varint(view, at)
        size, payload = 0, False
        # Wire types of the protobuf encoding. Groups (3, 4) are in none of our messages.
        match tag & 7:
            case 0:
                _, at = _varint(view, at)
            case 1:
                size = 8
            case 2:
                size, at = _varint(view, at)
                payload = True
            case 5:
                size = 4
            case _:
                raise Malformed
        if size > len(view) - at:
            raise Malformed
        yield tag >> 3, view[at : at + size] if payload else view[:0]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(view[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise Malformed
