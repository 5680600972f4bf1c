"""The header blocks of one HTTP/2 connection, as a server reads them (HPACK, RFC 7541)."""

from __future__ import annotations

from typing import Any

from orchestrator.sandbox.http2_frames import COMPRESSION_ERROR, Http2Error

Header = tuple[bytes, bytes]

MAX_HEADER_BYTES = 16 << 10  # of a block, and of what it unpacks to
DEFAULT_TABLE = 4_096  # bytes of the table that both ends may fill
NO_TABLE = b"\x20"  # "dynamic table size update" to nothing, section 6.3

_MAX_LITERALS = 32  # in a block that is read without the decoder
_BLOCK_BYTES_A_FRAME = 8  # of indexed fields or Huffman's code, which take the decoder as long as a frame
_INDEXED = {0x83: (b":method", b"POST"), 0x86: (b":scheme", b"http")}  # of the static table, appendix A


class HeaderReader:
    """Reads the blocks of one connection, in their order: they share a table."""

    def __init__(self) -> None:
        self._decoder: Any = None
        self._last_block = b""  # of plain literals, which mean the same each time
        self._last_headers: list[Header] = []

    def read(self, block: bytes) -> tuple[list[Header], int]:
        """The headers of a block, and how many frames it counts as beside its own. Raises `Http2Error`."""
        if block == self._last_block:
            return self._last_headers, 0
        # Our agent's blocks need no table, and so no decoder, whose tables take longer to import than a cell runs.
        if (headers := literals(block)) is not None:
            self._last_block, self._last_headers = block, headers
            return headers, 0
        import hpack

        if self._decoder is None:
            self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BYTES)
        try:
            decoded = self._decoder.decode(block, raw=True)
        except hpack.HPACKError:
            raise Http2Error("a header block that is none, or too long", COMPRESSION_ERROR) from None
        return [(bytes(name), bytes(value)) for name, value in decoded], len(block) // _BLOCK_BYTES_A_FRAME


def literals(block: bytes) -> list[Header] | None:
    """The headers of a block of a few plain literals that enter no table; None for any other."""
    headers: list[Header] = []
    at = 0
    while at < len(block):
        if len(headers) == _MAX_LITERALS:
            return None
        if (indexed := _INDEXED.get(block[at])) is not None:
            headers.append(indexed)
            at += 1
            continue
        texts: list[bytes] = []
        if block[at]:
            return None
        at += 1
        for _ in range(2):
            length = block[at] if at < len(block) else 255
            texts.append(block[at + 1 : at + 1 + length])
            at += 1 + length
            if length >= 127 or at > len(block):
                return None
        headers.append((texts[0], texts[1]))
    return headers
