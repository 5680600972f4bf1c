"""The frames of HTTP/2 (RFC 9113, sections 4, 6 and 7): their kinds, flags and errors, and their bytes."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0x0, 0x1, 0x3, 0x6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x7, 0x8, 0x9, 0xB

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, *range(3, 10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE = 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(3, 7)

FRAME = struct.Struct("!HBBBI")  # the length's upper two bytes and its last one, type, flags, stream
SETTING = struct.Struct("!HI")
NUMBER = struct.Struct("!I")
MAX_NUMBER = (1 << 31) - 1  # of a stream, or of a window's bytes


class Http2Error(Exception):
    """The other end does not speak HTTP/2 as it should: the connection ends. The text holds nothing that it chose."""

    def __init__(self, text: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code


def put_frame(out: bytearray, kind: int, flags: int, number: int, payload: bytes | memoryview) -> None:
    """Appends a frame."""
    out += FRAME.pack(len(payload) >> 8, len(payload) & 255, kind, flags, number)
    out += payload


def unpadded(flags: int, payload: memoryview) -> memoryview:
    """What a payload holds beside its padding, as a view of its own. Raises `Http2Error`."""
    if not flags & PADDED:
        return payload[:]
    if not payload or payload[0] >= len(payload):
        raise Http2Error("more padding than there are bytes")
    return payload[1 : len(payload) - payload[0]]
