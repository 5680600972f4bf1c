"""The host's side of a guest's HTTP/2, held against python-hyper's client: what others say, it understands."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sandbox import grpc_calls, http2, http2_frames, http2_headers
from tests.unit.guest_modules import guest_grpc

RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "x")]
REQUEST += [("te", "trailers"), ("content-type", "application/grpc")]


@dataclass
class Owner:
    """Notes what comes on a stream."""

    headers: list[http2_headers.Header]
    body: bytearray = field(default_factory=bytearray)
    said: list[str] = field(default_factory=list)

    def data(self, data: memoryview, last: bool) -> None:
        self.body += data
        if last:
            self.said.append("last")

    def sent(self) -> None:
        self.said.append("sent")

    def lost(self) -> None:
        self.said.append("lost")


class Peer:
    """A server of ours and a client of python-hyper's, joined by hand."""

    def __init__(self, max_streams: int = 8) -> None:
        self.server = http2.Connection(max_streams, self._begin)
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        )
        self.client.initiate_connection()
        self.streams: list[http2.Stream] = []
        self.owners: list[Owner] = []
        self.events: list[Any] = []

    def _begin(self, stream: http2.Stream, headers: list[http2_headers.Header]) -> Owner:
        self.streams.append(stream)
        self.owners.append(Owner(headers))
        return self.owners[-1]

    def exchange(self) -> None:
        """Until neither has anything to say."""
        while True:
            asked = self.client.data_to_send()
            self.server.receive(memoryview(asked))
            said = b""
            while piece := self.server.take():
                said += piece
            if not asked and not said:
                return
            self.events += self.client.receive_data(said)

    def request(self, body: bytes | None = b"", *, end: bool = True) -> int:
        number: int = self.client.get_next_available_stream_id()
        self.client.send_headers(number, REQUEST, end_stream=body is None)
        if body:
            self.client.send_data(number, body, end_stream=end)
        self.exchange()
        return number

    def seen(self, kind: type[Any], number: int) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind) and event.stream_id == number]

    def body(self, number: int) -> bytes:
        return b"".join(event.data for event in self.seen(h2.events.DataReceived, number))

    def acknowledge(self) -> None:
        """As a client does that reads what it gets."""
        while events := [event for event in self.events if isinstance(event, h2.events.DataReceived)]:
            self.events = [event for event in self.events if event not in events]
            for event in events:
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.exchange()


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + number.to_bytes(4) + payload


GREETING = http2_frames.PREFACE + frame(4, 0, 0)
BLOCK = hpack.Encoder().encode(REQUEST)
LITERALS = b"\0\1a\1b"


def greeted(max_streams: int = 8) -> tuple[http2.Connection, list[Owner]]:
    owners: list[Owner] = []

    def begin(_: http2.Stream, headers: list[http2_headers.Header]) -> Owner:
        owners.append(Owner(headers))
        return owners[-1]

    connection = http2.Connection(max_streams, begin)
    connection.receive(memoryview(GREETING))
    return connection, owners


def test_a_request_and_its_response() -> None:
    peer = Peer()
    number = peer.request(b"question")
    [owner], [stream] = peer.owners, peer.streams
    assert (bytes(owner.body), owner.said) == (b"question", ["last"])
    assert grpc_calls.path_of(owner.headers) == "/a.B/C"
    peer.server.headers(stream, hpack.Encoder().encode(RESPONSE))
    peer.server.send(stream, b"ans", b"wer", trailers=hpack.Encoder().encode([("grpc-status", "0")]))
    peer.exchange()
    assert peer.body(number) == b"answer"
    [trailers] = peer.seen(h2.events.TrailersReceived, number)
    assert trailers.headers == [("grpc-status", "0")]
    assert peer.seen(h2.events.StreamEnded, number)
    assert owner.said == ["last", "sent"]


def test_headers_that_need_the_table_are_read_as_they_were_sent() -> None:
    peer = Peer()
    for _ in range(3):  # from the second on, most of them are in the table
        peer.request()
    assert [grpc_calls.path_of(owner.headers) for owner in peer.owners] == ["/a.B/C"] * 3


def test_the_agents_own_headers_are_read_without_a_decoder() -> None:
    block = guest_grpc.request_headers("/a.B/C")
    assert http2_headers.literals(block) == [(bytes(n), bytes(v)) for n, v in hpack.Decoder().decode(block, raw=True)]
    assert grpc_calls.path_of(http2_headers.literals(block) or []) == "/a.B/C"


@given(st.binary(max_size=60))
def test_what_is_read_without_a_decoder_is_what_a_decoder_reads(block: bytes) -> None:
    decoder = hpack.Decoder()
    headers = http2_headers.literals(block)
    if headers is not None:
        assert headers == [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
        assert not decoder.header_table.dynamic_entries


def test_a_large_response_goes_as_fast_as_it_is_read_and_lets_a_small_one_pass() -> None:
    peer = Peer()
    large, small = peer.request(), peer.request()
    body = bytes(range(256)) * 4096
    for stream, data in zip(peer.streams, (body, b"small"), strict=True):
        peer.server.headers(stream, hpack.Encoder().encode(RESPONSE))
        peer.server.send(stream, data, trailers=b"")
    peer.exchange()
    got = [event for event in peer.events if isinstance(event, h2.events.DataReceived)]
    assert sum(len(event.data) for event in got) == http2.STREAM_WINDOW
    assert "sent" not in peer.owners[0].said
    peer.acknowledge()
    assert peer.owners[0].said == peer.owners[1].said == ["sent"]
    assert large != small


def test_more_of_a_request_comes_when_it_is_granted() -> None:
    peer = Peer()
    peer.exchange()  # what frames may have
    number = peer.request(b"x" * 60_000, end=False)
    [owner], [stream] = peer.owners, peer.streams
    assert peer.client.local_flow_control_window(number) == http2.STREAM_WINDOW - 60_000
    peer.server.grant(stream, 100_000)
    peer.exchange()
    for _ in range(6):
        peer.client.send_data(number, b"x" * 16_000)
    peer.exchange()
    assert len(owner.body) == 156_000


def test_more_than_was_granted_ends_the_connection() -> None:
    connection, _ = greeted()
    connection.receive(memoryview(frame(1, 4, 1, BLOCK)))
    with pytest.raises(http2_frames.Http2Error) as error:
        connection.receive(memoryview(frame(0, 0, 1, bytes(40_000)) * 2))
    assert error.value.code == http2_frames.FLOW_CONTROL_ERROR


def test_requests_over_the_limit_are_refused_and_may_be_made_again() -> None:
    connection, owners = greeted(max_streams=2)
    for number in (1, 3, 5):
        connection.receive(memoryview(frame(1, 4, number, BLOCK)))
    assert len(owners) == 2
    assert connection.take().endswith(frame(3, 0, 5, http2_frames.REFUSED_STREAM.to_bytes(4)))
    connection.receive(memoryview(frame(3, 0, 1, bytes(4))))
    connection.receive(memoryview(frame(1, 4, 7, BLOCK)))
    assert [owner.said for owner in owners] == [["lost"], [], []]


def test_an_answer_before_the_end_of_the_question_ends_both() -> None:
    peer = Peer()
    number = peer.request(b"half", end=False)
    peer.server.headers(peer.streams[0], hpack.Encoder().encode([*RESPONSE, ("grpc-status", "9")]), last=True)
    peer.exchange()
    assert peer.seen(h2.events.StreamEnded, number)
    assert peer.owners[0].said == ["sent"]
    peer.server.receive(memoryview(frame(0, 0, number, b"late")))  # on its way when it ended
    assert bytes(peer.owners[0].body) == b"half"


def test_nothing_is_sent_or_told_after_a_reset() -> None:
    peer = Peer()
    number = peer.request(b"q")
    peer.server.headers(peer.streams[0], hpack.Encoder().encode(RESPONSE))
    peer.server.send(peer.streams[0], bytes(200_000), trailers=b"")
    peer.exchange()
    peer.client.reset_stream(number)
    peer.exchange()
    peer.server.send(peer.streams[0], b"more")
    peer.server.grant(peer.streams[0], 5)
    peer.server.reset(peer.streams[0], 8)
    assert peer.server.take() == b""
    assert peer.owners[0].said == ["last", "lost"]


def test_the_end_of_the_connection_is_the_end_of_its_calls() -> None:
    peer = Peer()
    peer.request(b"q", end=False)
    peer.server.close()
    assert peer.owners[0].said == ["lost"]


def test_a_ping_is_answered() -> None:
    peer = Peer()
    peer.client.ping(b"12345678")
    peer.exchange()
    assert [event.ping_data for event in peer.events if isinstance(event, h2.events.PingAckReceived)] == [b"12345678"]


def test_windows_and_frames_follow_the_clients_settings() -> None:
    peer = Peer()
    number = peer.request()
    peer.client.update_settings(
        {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10, h2.settings.SettingCodes.MAX_FRAME_SIZE: 20_000}
    )
    peer.exchange()
    peer.server.headers(peer.streams[0], hpack.Encoder().encode(RESPONSE))
    peer.server.send(peer.streams[0], bytes(50_000), trailers=b"")
    peer.exchange()
    assert len(peer.body(number)) == 10
    peer.client.increment_flow_control_window(40_000, number)
    peer.exchange()
    assert [len(event.data) for event in peer.seen(h2.events.DataReceived, number)] == [10, 20_000, 20_000]


def test_a_client_without_a_table_is_told_that_none_is_used() -> None:
    """RFC 7541, section 4.2: a decoder that takes it exactly ends the connection otherwise."""
    peer = Peer()
    number = peer.request(b"x")
    peer.exchange()
    peer.client.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    peer.exchange()
    peer.server.headers(peer.streams[0], b"\x88" + LITERALS)
    peer.server.send(peer.streams[0], b"yes", trailers=LITERALS)
    peer.exchange()
    assert peer.body(number) == b"yes"
    assert peer.seen(h2.events.StreamEnded, number)


@pytest.mark.parametrize(
    ("noise", "code"),
    [
        (frame(6, 0, 0), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(0, 0, 1, b"x"), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(1, 4, 2, BLOCK), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(1, 0, 1, BLOCK) + frame(6, 0, 0, bytes(8)), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(9, 4, 1, BLOCK), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(1, 4, 1, BLOCK) * 2, http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(1, 5, 1, BLOCK) + frame(0, 0, 1, b"x"), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(1, 0xC, 1, b"\xff"), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(5, 4, 1, BLOCK), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(8, 0, 0, bytes(4)), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0) + frame(8, 0, 0, b"\x7f\xff\xff\xff"), http2_frames.FLOW_CONTROL_ERROR),
        (frame(4, 0, 0) + frame(8, 0, 0, b"\0"), http2_frames.FRAME_SIZE_ERROR),
        (frame(4, 0, 0) + frame(3, 0, 1, b"\0"), http2_frames.FRAME_SIZE_ERROR),
        (frame(4, 0, 0, b"\0\4\x80\0\0\0"), http2_frames.FLOW_CONTROL_ERROR),
        (frame(4, 0, 0, b"\0\5\0\0\0\1"), http2_frames.PROTOCOL_ERROR),
        (frame(4, 0, 0, b"\0\4"), http2_frames.FRAME_SIZE_ERROR),
        (frame(4, 0, 0, b"\0\4\0\0\0\1" * 65), http2_frames.ENHANCE_YOUR_CALM),
        (frame(4, 0, 0) + frame(4, 1, 0, b"\0"), http2_frames.FRAME_SIZE_ERROR),
        (frame(4, 0, 0) + frame(1, 4, 1, b"\xff\xff\xff"), http2_frames.COMPRESSION_ERROR),
        (frame(4, 0, 0) + b"\xff\xff\xff" + bytes(6), http2_frames.FRAME_SIZE_ERROR),
    ],
)
def test_what_no_client_may_say_ends_the_connection(noise: bytes, code: int) -> None:
    connection = http2.Connection(8, lambda stream, headers: Owner(headers))
    with pytest.raises(http2_frames.Http2Error) as error:
        connection.receive(memoryview(http2_frames.PREFACE + noise))
    assert error.value.code == code


@pytest.mark.parametrize(
    ("block", "frames"), [(b"\x82" * 380, 48), (b"\0\0\0" * 400, 151), (b"\0\1a\1b" * 8, 1), (b"\x82", 1)]
)
def test_a_block_that_takes_the_decoder_long_counts_as_many_frames(block: bytes, frames: int) -> None:
    connection, _ = greeted()
    connection.receive(memoryview(frame(1, 4, 1, block)))
    assert connection.frames - 1 == frames


def test_a_window_that_is_set_often_in_one_frame_changes_once_and_counts_for_each_stream() -> None:
    connection, _ = greeted(64)
    for number in range(1, 128, 2):
        connection.receive(memoryview(frame(1, 4, number, LITERALS)))
    before = connection.frames
    connection.receive(memoryview(frame(4, 0, 0, b"\0\4\0\0\0\1\0\4\0\0\0\2")))
    assert connection.frames - before == 1 + 64 // 16
    connection.receive(memoryview(frame(4, 0, 0, b"\0\4\0\0\0\2")))
    assert connection.frames - before == 2 + 64 // 16


def test_a_block_that_is_continued_without_end_is_cut_off() -> None:
    """CVE-2024-27316 and its like."""
    connection, _ = greeted()
    connection.receive(memoryview(frame(1, 0, 1, BLOCK)))
    with pytest.raises(http2_frames.Http2Error) as error:
        connection.receive(memoryview(frame(9, 0, 1, bytes(100)) * 10_000))
    assert error.value.code == http2_frames.ENHANCE_YOUR_CALM


def test_a_small_block_that_unpacks_to_a_large_list_is_refused() -> None:
    connection, owners = greeted()
    encoder = hpack.Encoder()
    block = b"".join(encoder.encode([("x", "y" * 4000)]) for _ in range(50))
    assert len(block) < 4500
    with pytest.raises(http2_frames.Http2Error):
        connection.receive(memoryview(frame(1, 4, 1, block)))
    assert owners == []


@given(st.lists(st.integers(1, 40), max_size=30))
def test_where_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    said = GREETING + frame(1, 4, 1, BLOCK) + frame(0, 8, 1, b"\2hello\0\0") + frame(6, 0, 0, b"12345678")
    said += frame(0, 1, 1, b" world")
    owners: list[Owner] = []

    def begin(_: http2.Stream, headers: list[http2_headers.Header]) -> Owner:
        owners.append(Owner(headers))
        return owners[-1]

    connection = http2.Connection(8, begin)
    for cut in cuts:
        connection.receive(memoryview(said[:cut]))
        said = said[cut:]
    connection.receive(memoryview(said))
    [owner] = owners
    assert (bytes(owner.body), owner.said, connection.frames) == (b"hello world", ["last"], 5 + len(BLOCK) // 8)


FRAMES = st.builds(frame, st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))
REQUESTS = st.sampled_from([frame(1, 4, 1, BLOCK), frame(1, 5, 3, BLOCK), frame(0, 0, 1, b"\0\0\0\0\1x")])


@given(st.lists(FRAMES | REQUESTS, max_size=12))
@settings(max_examples=200)
def test_any_frames_are_taken_or_refused_and_nothing_else_happens(frames: list[bytes]) -> None:
    connection, owners = greeted()
    with contextlib.suppress(http2_frames.Http2Error):
        connection.receive(memoryview(b"".join(frames)))
    while connection.take():
        pass
    connection.close()
    assert all(owner.said.count("lost") <= 1 for owner in owners)
