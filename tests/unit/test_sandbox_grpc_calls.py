"""The messages of a stream, however they are cut into frames."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sandbox.grpc_calls import RESOURCE_EXHAUSTED, UNIMPLEMENTED, MessageStream
from orchestrator.sandbox.http2 import Connection, Stream

CAP = 40  # bytes of a message


class Wire:
    """What a stream asks of its connection."""

    def __init__(self) -> None:
        self.trailers: list[bytes] = []

    def headers(self, *_: Any, **__: Any) -> None:
        """The response begins."""

    def grant(self, *_: Any) -> None:
        """More may come."""

    def send(self, _: Stream, *pieces: bytes, trailers: bytes | None = None) -> None:
        assert pieces == ()
        assert trailers is not None
        self.trailers.append(trailers)


class Listener:
    def __init__(self) -> None:
        self.wire = Wire()
        self.messages: list[bytes] = []
        self.ended = 0
        self.broken: list[str] = []
        connection, stream = cast(Connection, self.wire), Stream(1, 1 << 16)
        self.stream = MessageStream(
            connection, lambda: None, stream, CAP, self.messages.append, self._end, self.broken.append
        )

    def _end(self) -> None:
        self.ended += 1

    def hear(self, *frames: bytes) -> None:
        for frame in frames:
            held = bytearray(frame)
            self.stream.data(memoryview(held), last=False)
            held[:] = b"\xff" * len(held)  # the buffer is read into again


def framed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack("!BI", flag, len(message)) + message


# Bytes that may themselves look like a message, so that a piece of one passes for a whole one.
texts = st.one_of(st.binary(max_size=CAP), st.binary(max_size=CAP - 5).map(framed))


@given(messages=st.lists(texts, max_size=6), cuts=st.lists(st.integers(0, 300), max_size=12))
def test_any_frames_carry_the_same_messages(messages: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(map(framed, messages))
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    listener = Listener()
    listener.hear(*(whole[start:end] for start, end in pairwise(edges)))
    assert listener.messages == messages
    assert (listener.ended, listener.broken) == (0, [])


def test_the_end_of_a_message_that_looks_like_one_is_none() -> None:
    inner = framed(b"not one")
    listener = Listener()
    listener.hear(framed(b"ab" + inner)[: -len(inner)], inner)
    assert listener.messages == [b"ab" + inner]


@pytest.mark.parametrize("before", [(), (framed(b"good"),), (framed(b"good")[:3], framed(b"good")[3:])])
@pytest.mark.parametrize(
    ("frame", "status"),
    [(framed(b"packed", flag=1), UNIMPLEMENTED), (framed(b"x" * (CAP + 1)), RESOURCE_EXHAUSTED)],
    ids=["compressed", "too long"],
)
def test_what_cannot_be_a_message_breaks_the_stream(before: tuple[bytes, ...], frame: bytes, status: int) -> None:
    listener = Listener()
    listener.hear(*before, frame)
    assert listener.messages == ([b"good"] if before else [])
    assert len(listener.broken) == 1
    (trailers,) = listener.wire.trailers
    assert b"grpc-status" + bytes((len(f"{status}"),)) + f"{status}".encode() in trailers
