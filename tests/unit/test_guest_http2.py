"""The agent's own gRPC client, held against python-hyper's HTTP/2 and HPACK: what others understand is right."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
import hpack.table
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.guest_modules import agent_grpc, agent_http2, guest_grpc, guest_hpack

HEADERS = [(b":status", b"200"), (b"content-type", b"application/grpc")]
names = st.text("abcdefghijklmnop-", min_size=1).map(str.encode)


@dataclass
class Owner:
    """Notes what comes on a stream."""

    seen: list[Any] = field(default_factory=list)

    def headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.seen.append(headers)

    def data(self, data: memoryview) -> None:
        self.seen.append(bytes(data))

    def ended(self, error: int | None) -> None:
        self.seen.append(error)


class Peer:
    """A client of ours and a server of python-hyper's, joined by hand."""

    def __init__(self, **settings: int) -> None:
        self.client = agent_http2.Connection()
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.server.initiate_connection()
        if settings:
            codes = {getattr(h2.settings.SettingCodes, name): value for name, value in settings.items()}
            self.server.update_settings(codes)
        self.events: list[Any] = []
        self.owner = Owner()

    def to_server(self) -> list[Any]:
        """Everything that the client has to send now."""
        events: list[Any] = []
        while sent := self.client.take():
            events += self.server.receive_data(sent)
        self.events += events
        return events

    def to_client(self) -> None:
        self.client.receive(self.server.data_to_send())

    def exchange(self) -> None:
        """Until neither has anything to say."""
        while True:
            self.to_server()
            if not (said := self.server.data_to_send()):
                return
            self.client.receive(said)

    def received(self, number: int) -> bytes:
        return b"".join(
            event.data
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == number
        )

    def acknowledge(self) -> None:
        for event in self.events:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    self.server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                event.flow_controlled_length = 0


def request(peer: Peer) -> Any:
    return peer.client.request(guest_grpc.request_headers("/a.B/C"), peer.owner)


def test_a_request_arrives_as_grpc_wants_it_and_its_answer_comes_back() -> None:
    peer = Peer()
    stream = request(peer)
    peer.client.send(stream, b"question", last=True)
    peer.exchange()
    (asked,) = [event for event in peer.events if isinstance(event, h2.events.RequestReceived)]
    assert dict(asked.headers) == {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/a.B/C",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"user-agent": b"rlm-guest/1",
    }
    assert peer.received(stream.number) == b"question"
    assert any(isinstance(event, h2.events.StreamEnded) for event in peer.events)
    peer.server.send_headers(stream.number, HEADERS)
    peer.server.send_data(stream.number, b"answer", pad_length=9)
    peer.server.send_headers(stream.number, [(b"grpc-status", b"0"), (b"grpc-message", b"fine")], end_stream=True)
    peer.exchange()
    assert peer.owner.seen == [HEADERS, b"answer", [(b"grpc-status", b"0"), (b"grpc-message", b"fine")], None]


def test_more_than_a_window_waits_for_room_and_arrives_whole() -> None:
    peer = Peer(INITIAL_WINDOW_SIZE=1000)
    peer.to_client()
    stream = request(peer)
    body = bytes(range(256)) * 1000
    peer.client.send(stream, body, last=True)
    peer.to_server()
    assert len(peer.received(stream.number)) == 1000
    for _ in range(len(body)):
        peer.acknowledge()
        peer.exchange()
        if len(peer.received(stream.number)) == len(body):
            break
    assert peer.received(stream.number) == body


def test_a_large_message_does_not_hold_up_a_small_one() -> None:
    peer = Peer(INITIAL_WINDOW_SIZE=1 << 20)
    peer.server.increment_flow_control_window(1 << 20)
    peer.to_client()
    large, small = request(peer), request(peer)
    peer.client.send(large, bytes(10 << 20), last=True)
    peer.client.send(small, b"heartbeat")
    taken = [peer.client.take(), peer.client.take()]
    assert b"heartbeat" in b"".join(taken)
    assert sum(map(len, taken)) < 3 * agent_http2.CHUNK


def test_a_long_answer_is_let_in_as_it_is_read() -> None:
    peer = Peer()
    stream = request(peer)
    peer.exchange()
    peer.server.send_headers(stream.number, HEADERS)
    left = 3 * agent_http2.CONNECTION_WINDOW
    while left:
        room = min(left, peer.server.local_flow_control_window(stream.number), peer.server.max_outbound_frame_size)
        assert room > 0, "the client has made no room"
        peer.server.send_data(stream.number, bytes(room))
        left -= room
        peer.exchange()
    assert sum(len(seen) for seen in peer.owner.seen if type(seen) is bytes) == 3 * agent_http2.CONNECTION_WINDOW


def test_an_answer_before_the_question_is_whole_stops_the_question() -> None:
    peer = Peer()
    stream = request(peer)
    peer.client.send(stream, bytes(1 << 20))
    peer.to_server()
    peer.server.send_headers(stream.number, [(b":status", b"200"), (b"grpc-status", b"8")], end_stream=True)
    peer.to_client()
    events = peer.to_server()
    assert peer.owner.seen[-1] is None
    (reset,) = [event for event in events if isinstance(event, h2.events.StreamReset)]
    assert reset.error_code == agent_http2.NO_ERROR
    peer.client.send(stream, b"more")
    assert peer.client.take() == b""


def test_a_reset_a_goaway_and_a_lost_connection_end_streams() -> None:
    peer = Peer()
    first, second = request(peer), request(peer)
    peer.client.send(first, b"x")
    peer.exchange()
    peer.server.reset_stream(first.number, 7)
    peer.exchange()
    assert peer.owner.seen == [7]
    peer.server.close_connection(last_stream_id=first.number)
    peer.client.receive(peer.server.data_to_send())
    assert peer.owner.seen == [7, agent_http2.CANCEL]
    third = Owner()
    peer.client.request(b"", third)
    peer.client.close()
    assert third.seen == [agent_http2.CANCEL]
    assert second.number not in peer.client._streams


def test_a_ping_is_answered_and_settings_are_acknowledged() -> None:
    peer = Peer()
    peer.to_server()
    peer.server.ping(b"12345678")
    peer.exchange()
    assert any(isinstance(event, h2.events.PingAckReceived) for event in peer.events)
    assert any(isinstance(event, h2.events.SettingsAcknowledged) for event in peer.events)
    assert peer.client.greeted


def test_what_comes_in_pieces_means_the_same() -> None:
    whole = Peer()
    stream = request(whole)
    whole.exchange()
    whole.server.send_headers(stream.number, HEADERS)
    whole.server.send_data(stream.number, b"answer")
    whole.server.ping(b"12345678")
    whole.server.send_headers(stream.number, [(b"grpc-status", b"0")], end_stream=True)
    said = whole.server.data_to_send()
    for at in range(len(said)):
        peer = Peer()
        request(peer)
        while peer.client.take():
            pass
        peer.client.receive(said[:at])
        peer.client.receive(said[at:])
        assert peer.owner.seen == [HEADERS, b"answer", [(b"grpc-status", b"0")], None]
        assert peer.client.take().count(b"12345678") == 1
    for byte in said:
        whole.client.receive(bytes((byte,)))
    assert whole.owner.seen == peer.owner.seen


def test_small_messages_wait_for_room_in_their_order() -> None:
    peer = Peer(INITIAL_WINDOW_SIZE=10)
    peer.to_client()
    stream = request(peer)
    messages = [b"%04d" % number for number in range(9)]
    for message in messages:
        peer.client.send(stream, message)
    peer.client.send(stream, b"", last=True)
    peer.to_server()
    assert peer.received(stream.number) == b"0000000100"
    for _ in messages:
        peer.acknowledge()
        peer.exchange()
    assert peer.received(stream.number) == b"".join(messages)
    assert any(isinstance(event, h2.events.StreamEnded) for event in peer.events)


def test_small_messages_that_cannot_be_sent_now_do_not_become_one_large_one() -> None:
    peer = Peer(INITIAL_WINDOW_SIZE=1 << 20)
    peer.server.increment_flow_control_window(1 << 20)
    peer.to_client()
    stream = request(peer)
    for _ in range(64):
        peer.client.send(stream, bytes(10_000))
    taken = []
    while sent := peer.client.take():
        taken.append(len(sent))
        peer.events += peer.server.receive_data(bytes(sent))
    assert len(peer.received(stream.number)) == 640_000
    assert max(taken) < 2 * agent_http2.CHUNK


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return struct.pack("!HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, number) + payload


def test_a_header_block_in_pieces_is_one() -> None:
    peer = Peer()
    stream = request(peer)
    block = hpack.Encoder().encode([*HEADERS, (b"grpc-status", b"0")])
    peer.client.receive(frame(1, 0x1, stream.number, block[:3]) + frame(9, 0, stream.number, block[3:7]))
    assert peer.owner.seen == []
    peer.client.receive(frame(9, 0x4, stream.number, block[7:]))
    assert peer.owner.seen == [[*HEADERS, (b"grpc-status", b"0")], None]


@pytest.mark.parametrize(
    "what",
    [
        b"\xff\xff\xff" + frame(0, 0, 1, b"")[3:],
        frame(8, 0, 0, b"12"),
        frame(4, 0, 0, b"12345"),
        frame(4, 0, 0, struct.pack("!HI", 4, 1 << 31)),
        frame(5, 4, 1, b"1234"),
        frame(9, 4, 1, b""),
        frame(1, 0, 1, b"") + frame(0, 0, 1, b""),
        frame(1, 4, 1, b"\x80"),
        frame(1, 4, 1, b"\xbf\xff\xff\xff\xff\xff\xff"),
        frame(0, 0x8, 1, b"\x09"),
        frame(7, 0, 0, b"1"),
    ],
)
def test_what_is_no_http2_is_the_end_of_the_connection(what: bytes) -> None:
    peer = Peer()
    request(peer)
    with pytest.raises(agent_http2.Http2Error):
        peer.client.receive(what)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    peer = Peer()
    request(peer)
    with contextlib.suppress(agent_http2.Http2Error):
        peer.client.receive(data)


@given(st.integers(0, 9), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=60))
def test_any_frame_is_taken_or_refused(kind: int, flags: int, number: int, payload: bytes) -> None:
    peer = Peer()
    request(peer)
    with contextlib.suppress(agent_http2.Http2Error):
        peer.client.receive(frame(kind, flags, number, payload))


# --- gRPC on top of it ------------------------------------------------------------------------------------------------


class Silent:
    """A channel that sends nothing."""

    def send(self, *_: object) -> None: ...


def call() -> tuple[Any, list[Any]]:
    seen: list[Any] = []
    made = agent_grpc.Call(Silent(), seen.append, lambda *status: seen.append(status))  # type: ignore[arg-type]
    return made, seen


@given(st.lists(st.binary(max_size=30), max_size=4), st.integers(1, 150))
def test_messages_come_whole_however_they_are_cut(messages: list[bytes], size: int) -> None:
    made, seen = call()
    body = b"".join(struct.pack("!BI", 0, len(message)) + message for message in messages)
    for at in range(0, len(body), size):
        made.data(memoryview(body[at : at + size]))
    assert seen == messages


@pytest.mark.parametrize("head", [struct.pack("!BI", 1, 0), struct.pack("!BI", 0, guest_grpc.MESSAGE_CAP + 1)])
def test_a_compressed_or_too_large_message_is_refused(head: bytes) -> None:
    with pytest.raises(agent_http2.Http2Error):
        call()[0].data(memoryview(head))


@pytest.mark.parametrize(
    ("blocks", "error", "status"),
    [
        ([HEADERS, [(b"grpc-status", b"0")]], None, (0, "")),
        ([[*HEADERS, (b"grpc-status", b"9"), (b"grpc-message", b"no%20cell %e2%80%a6")]], None, (9, "no cell …")),
        ([[(b":status", b"502")]], None, (2, "HTTP status 502")),
        ([[(b":status", b"200"), (b"grpc-status", b"x")]], None, (2, "")),
        ([HEADERS], None, (2, "the call ended without a status")),
        ([], 0x7, (14, "the call was reset")),
        ([HEADERS], 0x8, (1, "the call was reset")),
        ([HEADERS], 0x2, (13, "the call was reset")),
    ],
)
def test_a_call_ends_with_the_status_that_it_was_told(blocks: Any, error: Any, status: Any) -> None:
    made, seen = call()
    for block in blocks:
        made.headers(block)
    made.ended(error)
    assert seen == [status]


# --- HPACK ------------------------------------------------------------------------------------------------------------


def test_the_static_table_is_the_standards() -> None:
    assert list(hpack.table.HeaderTable.STATIC_TABLE) == guest_hpack._STATIC


@given(st.lists(st.lists(st.tuples(names, st.binary(max_size=300)), max_size=6), max_size=4), st.booleans())
def test_every_header_that_others_write_is_read(blocks: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    theirs, ours = hpack.Encoder(), guest_hpack.Decoder()
    for place, block in enumerate(blocks):
        theirs.header_table_size = (4096, 100, 0)[place % 3]
        assert ours.decode(theirs.encode(block, huffman=huffman)) == block


def test_every_symbol_of_the_huffman_code_is_read() -> None:
    text = bytes(range(256))
    assert guest_hpack.Decoder().decode(hpack.Encoder().encode([(b"a", text)], huffman=True)) == [(b"a", text)]


@given(names, st.binary(max_size=400))
def test_others_read_what_is_written(name: bytes, value: bytes) -> None:
    assert hpack.Decoder().decode(guest_hpack.literal(name, value), raw=True) == [(name, value)]


@given(st.binary(max_size=60))
def test_any_block_is_headers_or_refused(block: bytes) -> None:
    with contextlib.suppress(guest_hpack.HpackError):
        guest_hpack.Decoder().decode(block)


def test_a_block_that_is_repeated_says_what_the_table_says_by_then() -> None:
    kept, entry, first, second = b"\x40\x01a\x01b", b"\xbe", [(b"a", b"b")], [(b"c", b"d")]
    decoder = guest_hpack.Decoder()
    for _ in range(2):
        assert decoder.decode(kept) == first
        assert decoder.decode(entry) == first
        assert decoder.decode(b"\x40\x01c\x01d") == second
        assert decoder.decode(entry) == second
        assert decoder.decode(b"\x0f\x2f\x01e") == [(b"c", b"e")]  # a name of the table, with a value of its own
    for _ in range(2):
        assert decoder.decode(b"\x20") == []  # the table is to be empty
        with pytest.raises(guest_hpack.HpackError):
            decoder.decode(entry)
        decoder.decode(b"\x3f\xe1\x1f" + kept)


def test_few_blocks_are_remembered() -> None:
    decoder = guest_hpack.Decoder()
    for number in range(100):
        for _ in range(2):
            assert decoder.decode(guest_hpack.literal(b"a", b"%d" % number)) == [(b"a", b"%d" % number)]
        assert 0 < len(decoder._known) <= guest_hpack.MAX_KNOWN


def test_no_frame_is_too_large_for_a_message() -> None:
    assert agent_http2.MAX_FRAME <= guest_grpc.MESSAGE_CAP  # so that a message that is a frame needs no look at its cap
