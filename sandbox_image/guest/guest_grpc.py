"""What both of the guest's gRPC clients say and hear, the agent's and the worker's ("gRPC over HTTP2")."""

from __future__ import annotations

import struct

from guest_hpack import literal

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, INTERNAL, UNAVAILABLE = (
    *range(4),
    8,
    9,
    13,
    14,
)
MESSAGE_CAP = 64 << 20  # bytes
PREFIX = struct.Struct("!BI")  # of a message: whether it is compressed, and its length
STATUS_OF_RESET = {0x7: UNAVAILABLE, 0x8: CANCELLED, 0xB: RESOURCE_EXHAUSTED}


def request_headers(path: str) -> bytes:
    """The header block of a call of a method, `/package.Service/Method`."""
    # The two bytes are ":method: POST" and ":scheme: http" of the static table.
    return b"\x83\x86" + b"".join(
        literal(name, value)
        for name, value in (
            (b":path", path.encode("ascii")),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"rlm-guest/1"),
        )
    )


def status_of(value: bytes) -> int:
    """The number of a `grpc-status`."""
    return int(value) if value.isdigit() and len(value) < 4 else UNKNOWN


def unquoted(value: bytes) -> str:
    """A status message, in which what is no printable ASCII is percent-encoded; what is no such code is left."""
    first, *rest = value.split(b"%")
    plain = bytearray(first)
    for piece in rest:
        try:
            plain += bytes.fromhex(piece[:2].decode("ascii")) + piece[2:] if len(piece) > 1 else b"%" + piece
        except ValueError:
            plain += b"%" + piece
    return plain.decode("utf-8", "replace")
