"""Frames on the socket pair between the agent and its worker.

A frame is two big-endian 32-bit lengths, then so many bytes of JSON (one object, with an `op`), then so many bytes of
raw data, whose division the JSON tells. Texts travel as raw data, so that the JSON stays small: parsed JSON can be
thirty times its size in memory, and the agent parses what hostile code may have written.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from json.encoder import c_make_encoder, encode_basestring_ascii  # type: ignore[attr-defined]
from typing import Any

HEADER = struct.Struct("!II")
JSON_CAP = 1 << 20  # bytes
DATA_CAP = 66 << 20  # bytes: a whole gRPC message of the largest size, and what surrounds it

Message = dict[str, Any]

# Both made once: they are on the path of every cell. `JSONEncoder.encode` makes one of these for each message.
_to_json = c_make_encoder(None, None, encode_basestring_ascii, None, ":", ",", False, False, True)
_from_json = json.JSONDecoder().raw_decode


class FrameError(Exception):
    """What came is no frame, or is over a cap."""


def encode(message: Message | str, *data: bytes) -> bytes:
    """One frame of a message, or of the JSON that it would be, and its raw data.

    Raises:
        FrameError: the JSON or the raw data is over its cap.
    """
    head = (message if type(message) is str else "".join(_to_json(message, 0))).encode("ascii")
    length = sum(map(len, data))
    if len(head) > JSON_CAP or length > DATA_CAP:
        raise FrameError(f"a frame of {len(head):,} + {length:,} bytes is over {JSON_CAP:,} + {DATA_CAP:,}")
    return b"".join((HEADER.pack(len(head), length), head, *data))


def lengths(frames: bytes | memoryview, at: int = 0) -> tuple[int, int]:
    """The lengths of the JSON and of the raw data that a frame's first bytes announce.

    Raises:
        FrameError: one of them is over its cap.
    """
    head, data = HEADER.unpack_from(frames, at)
    if not 2 <= head <= JSON_CAP or data > DATA_CAP:
        raise FrameError(f"a frame announces {head:,} + {data:,} bytes")
    return head, data


def parse(head: bytes | memoryview) -> Message:
    """The JSON object of a frame.

    Raises:
        FrameError: it is not JSON, there is anything around it, it is not an object, or it has no `op`.
    """
    try:
        text = str(head, "utf-8")
        message, end = _from_json(text)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {type(error).__name__}") from None
    if end != len(text) or type(message) is not dict or type(message.get("op")) is not str:
        raise FrameError("not an object with an op")
    return message


class FrameDecoder:
    """Cuts a stream of bytes into frames; holds at most one frame and one read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes | memoryview) -> Iterator[tuple[Message, bytes]]:
        """Yields each frame that is complete now.

        Raises:
            FrameError: see `lengths` and `parse`; the stream cannot be read on after it.
        """
        if self._buffer:
            self._buffer += received
        frames = memoryview(self._buffer or received)
        at, most = 0, len(frames)
        while most - at >= HEADER.size:
            head, data = lengths(frames, at)
            middle = at + HEADER.size + head
            end = middle + data
            if most < end:
                break
            yield parse(frames[at + HEADER.size : middle]), bytes(frames[middle:end])
            at = end
        frames.release()
        if self._buffer:
            del self._buffer[:at]
        elif at < most:
            self._buffer += received[at:]


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    """Divides raw data into pieces of these sizes.

    Raises:
        FrameError: the sizes do not add up to the data's length, or one is not a length.
    """
    pieces, at = [], 0
    for size in sizes:
        if type(size) is not int or size < 0:
            raise FrameError("a piece's size is none")
        pieces.append(data[at : at + size])
        at += size
    if at != len(data):
        raise FrameError(f"sizes do not divide {len(data):,} bytes")
    return pieces
