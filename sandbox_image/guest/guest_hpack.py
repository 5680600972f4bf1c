"""HPACK (RFC 7541), as far as the guest's clients need it: reads every header block, writes none that needs a table."""

from __future__ import annotations

Header = tuple[bytes, bytes]
MAX_TABLE_BYTES = 4096  # the protocol's own default
MAX_KNOWN = 8  # blocks: a server of ours has two that it repeats with every answer
_ENTRY_OVERHEAD = 32

# Appendix A.
_STATIC_NAMES = (
    b":authority :method :method :path :path :scheme :scheme :status :status :status :status :status :status :status "
    b"accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age allow "
    b"authorization cache-control content-disposition content-encoding content-language content-length "
    b"content-location content-range content-type cookie date etag expect expires from host if-match "
    b"if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards "
    b"proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie "
    b"strict-transport-security transfer-encoding user-agent vary via www-authenticate"
).split()
_STATIC_VALUES = {
    2: b"GET",
    3: b"POST",
    4: b"/",
    5: b"/index.html",
    6: b"http",
    7: b"https",
    8: b"200",
    9: b"204",
    10: b"206",
    11: b"304",
    12: b"400",
    13: b"404",
    14: b"500",
    16: b"gzip, deflate",
}
_STATIC: list[Header] = [(name, _STATIC_VALUES.get(index, b"")) for index, name in enumerate(_STATIC_NAMES, 1)]

# Appendix B, as the length in bits of each symbol's code: the codes follow from it, since they are canonical.
_HUFFMAN_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505050606060606"
    "060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605060506060605070706060605"
    "06070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617161717181615141616171715"
    "1716161815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_END_OF_STRING = 256


class HpackError(Exception):
    """The bytes are no header block."""


def literal(name: bytes, value: bytes) -> bytes:
    """One header field, as a literal that enters no table."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(number: int) -> bytes:
    if number < 127:
        return bytes((number,))
    encoded = bytearray((127,))
    number -= 127
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class Decoder:
    """Reads the header blocks of one connection, in their order, and keeps the table that they share."""

    def __init__(self, table_bytes: int = MAX_TABLE_BYTES) -> None:
        """`table_bytes`: what the other end was told. With 0, a block says the same whenever it is read."""
        self._table: list[Header] = []  # the newest first
        self._bytes = 0
        self._most = self._offered = table_bytes
        self._known: dict[bytes, list[Header]] = {}  # what blocks say that have nothing to do with the table

    def decode(self, block: bytes) -> list[Header]:
        """The header fields of a block.

        Raises:
            HpackError: it is none; the connection cannot be read on after it.
        """
        if (known := self._known.get(block)) is not None:
            return known
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError("a header block ends in the middle, or names an entry that is not there") from None

    def _decode(self, block: bytes) -> list[Header]:
        headers: list[Header] = []
        at = 0
        alone = True  # what it says depends on no other block, nor another block on it
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 7)
                headers.append(self._entry(index))
                alone = alone and index <= len(_STATIC)
            elif first & 0xE0 == 0x20:
                self._most, at = _integer(block, at, 5)
                if self._most > self._offered:
                    raise HpackError("a table larger than was offered")
                self._evict()
                alone = False
            else:
                kept = first & 0x40
                index, at = _integer(block, at, 6 if kept else 4)
                name, at = (self._entry(index)[0], at) if index else _string(block, at)
                value, at = _string(block, at)
                headers.append((name, value))
                alone = alone and not kept and index <= len(_STATIC)
                if kept and self._offered:
                    self._keep((name, value))
        if alone:
            if len(self._known) == MAX_KNOWN:
                self._known.clear()
            self._known[block] = headers
        return headers

    def _entry(self, index: int) -> Header:
        if index == 0:
            raise HpackError("there is no entry 0")
        return _STATIC[index - 1] if index <= len(_STATIC) else self._table[index - len(_STATIC) - 1]

    def _keep(self, header: Header) -> None:
        self._table.insert(0, header)
        self._bytes += _size(header)
        self._evict()

    def _evict(self) -> None:
        while self._bytes > self._most:
            self._bytes -= _size(self._table.pop())


def _size(header: Header) -> int:
    return len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Section 5.1: the number, and where the next thing begins."""
    most = (1 << bits) - 1
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    for shift in range(0, 35, 7):
        byte = block[at]
        at += 1
        number += (byte & 127) << shift
        if byte < 128:
            return number, at
    raise HpackError("a number that is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    length, at = _integer(block, at, 7)
    text = block[at : at + length]
    if len(text) < length:
        raise HpackError("a text that is longer than its block")
    return (_unhuffman(text) if coded else text), at + length


_huffman: dict[tuple[int, int], int] = {}  # (length, code) to symbol, made when first needed, and all of it at once


def _unhuffman(text: bytes) -> bytes:
    if not _huffman:
        codes: dict[tuple[int, int], int] = {}
        code = length = 0
        for symbol in sorted(range(len(_HUFFMAN_LENGTHS)), key=_HUFFMAN_LENGTHS.__getitem__):
            code <<= _HUFFMAN_LENGTHS[symbol] - length
            length = _HUFFMAN_LENGTHS[symbol]
            codes[length, code] = symbol
            code += 1
        _huffman.update(codes)
    plain = bytearray()
    code = length = 0
    for byte in text:
        for shift in range(7, -1, -1):
            code, length = code << 1 | byte >> shift & 1, length + 1
            found = _huffman.get((length, code))
            if found is None:
                continue
            if found == _END_OF_STRING:
                raise HpackError("a text with its end in the middle")
            plain.append(found)
            code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("a text that ends in the middle of a symbol")
    return bytes(plain)
