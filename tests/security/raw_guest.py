"""A guest that speaks HTTP/2 by itself, frame by frame, and keeps to no rule that it does not choose to keep."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions

SERVICE = "/rlm.guest.v1.GuestService/"
Headers = Sequence[tuple[str, str]]


class RawGuest:
    """One HTTP/2 connection. What the server says is folded into `statuses`, `resets` and `ended`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.http = h2.connection.H2Connection(config)
        self.http.initiate_connection()
        self.statuses: dict[int, str] = {}
        self.resets: set[int] = set()
        self.ended = False

    def open(self, method: str, headers: Headers = (), *, end: bool = False) -> int:
        """Begins a call; nothing of its body is sent yet."""
        stream = self.http.get_next_available_stream_id()
        base = [(":method", "POST"), (":scheme", "http"), (":path", SERVICE + method), (":authority", "x")]
        base += [("te", "trailers"), ("content-type", "application/grpc"), *headers]
        self.http.send_headers(stream, base, end_stream=end)
        return stream

    def message(self, stream: int, data: bytes, *, end: bool = False, claim: int | None = None, flag: int = 0) -> None:
        """A gRPC message; `claim` is the length that its header tells, if not the true one."""
        body = struct.pack("!BI", flag, len(data) if claim is None else claim) + data
        size = self.http.max_outbound_frame_size
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        for number, piece in enumerate(pieces):
            self.http.send_data(stream, piece, end_stream=end and number == len(pieces) - 1)

    async def flush(self) -> None:
        self._writer.write(self.http.data_to_send())
        try:
            await self._writer.drain()
        except ConnectionError:
            self.ended = True

    async def until(self, stream: int | None = None) -> None:
        """Reads until this call has an answer, or the connection has ended."""
        while not self.ended and (stream is None or (stream not in self.statuses and stream not in self.resets)):
            try:
                data = await self._reader.read(65536)
            except ConnectionError:
                data = b""
            if not data:
                self.ended = True
                return
            try:
                events = self.http.receive_data(data)
            except h2.exceptions.ProtocolError:
                self.ended = True
                return
            for event in events:
                self._take(event)
            await self.flush()

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                found = {_text(name): _text(value) for name, value in event.headers or ()}
                if "grpc-status" in found and event.stream_id is not None:
                    self.statuses[event.stream_id] = found["grpc-status"]
                elif found.get(":status", "200") != "200" and event.stream_id is not None:
                    self.statuses[event.stream_id] = f"HTTP {found[':status']}"  # for what is no call of gRPC
            case h2.events.StreamReset():
                self.resets.add(event.stream_id or 0)
            case h2.events.ConnectionTerminated():
                self.ended = True


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@asynccontextmanager
async def raw_guest(socket: Path) -> AsyncIterator[RawGuest]:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    guest = RawGuest(reader, writer)
    await guest.flush()
    try:
        yield guest
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass  # the server was quicker
