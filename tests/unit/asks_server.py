"""The host's end of the connection on which a worker asks: gRPC over HTTP/2, without a thread or an event loop."""

from __future__ import annotations

import socket
import struct
import urllib.parse
from collections import defaultdict, deque
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 0, 1, 2, 3, 8
FAILED_PRECONDITION, INTERNAL, UNAVAILABLE = 9, 13, 14

# As the real host's.
STREAM_WINDOW, CONNECTION_WINDOW, MAX_FRAME = 65_535, 1 << 20, 64 << 10

_DEFAULT_WINDOW = 65_535  # with which a connection begins, whatever the settings say (RFC 9113, section 6.9.2)

_PREFIX = struct.Struct("!BI")
_READ_BYTES = 256 << 10
_REQUEST = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/rlm.guest.v1.GuestService/Ask",
    "te": "trailers",
    "content-type": "application/grpc",
}
_RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
_KINDS = {pb.CONTEXT_KIND_TEXT: "text", pb.CONTEXT_KIND_JSON: "json", pb.CONTEXT_KIND_BYTES: "bytes"}

Question = tuple[str, str, bytes]  # prompt, kind, data
Outcome = tuple[str, str]  # reason, text; the reason is empty for an answer


@dataclass(frozen=True)
class GivenUp:
    """The worker has reset the stream of a call that was not answered."""

    stream: int


@dataclass(frozen=True)
class Asked:
    """A call that has come whole. What is said to one that was given up goes nowhere."""

    stream: int
    request: pb.AskRequest
    server: AsksServer = field(repr=False, compare=False)

    @property
    def questions(self) -> list[Question]:
        """`kind` is "", "text", "json" or "bytes"."""
        return [
            (one.prompt, _KINDS[one.context.kind] if one.HasField("context") else "", one.context.data)
            for one in self.request.questions
        ]

    @property
    def prompt(self) -> str:
        """That of its only question."""
        (question,) = self.request.questions
        return question.prompt

    def answer(self, *outcomes: Outcome) -> None:
        """A reason and a text for each question, however many they are."""
        self.server.answer(self.stream, response(*outcomes))

    def answer_bytes(self, *outcomes: Outcome) -> bytes:
        """The bytes of an answer, for `AsksServer.send_bytes`: in the order in which they were made."""
        return self.server.answer_bytes(self.stream, response(*outcomes))

    def answer_with(self, message: bytes) -> None:
        """Answers with a message that may be none."""
        self.server.answer(self.stream, message)

    def refuse(self, status: int, message: str = "") -> None:
        """Ends the call with a status of gRPC's and no answer."""
        self.server.refuse(self.stream, status, message)


def response(*outcomes: Outcome) -> bytes:
    """A message with these slots."""
    slots = [pb.Slot(failure=_failure(reason, text)) if reason else pb.Slot(text=text) for reason, text in outcomes]
    return pb.AskResponse(slots=slots).SerializeToString()


def _failure(reason: str, text: str) -> pb.Failure:
    return pb.Failure(reason=pb.FailureReason.Value(f"FAILURE_REASON_{reason.upper()}"), message=text)


class AsksServer:
    """Serves one connection. What comes is in `events` after `receive`; nothing blocks."""

    def __init__(
        self, connected: socket.socket, *, stream_window: int = STREAM_WINDOW, max_frame: int = MAX_FRAME
    ) -> None:
        connected.setblocking(False)
        self._socket = connected
        self.events: deque[Asked | GivenUp] = deque()
        self.ended = False  # the worker has hung up
        self.settled = False  # the worker knows the settings
        self.frames: defaultdict[int, list[int]] = defaultdict(list)  # by stream: the sizes of what came of its data
        self.left_off: list[int] = []  # streams that were answered before they had come whole, and end with that
        self._holding = False
        self._held: list[tuple[int, int]] = []  # bytes and streams of what came meanwhile
        self._requests: dict[int, bytearray] = {}
        self._unanswered: set[int] = set()
        self._answered_early: set[int] = set()
        self._pending: dict[int, memoryview] = {}  # of answers: what no window had room for yet
        self._unsent = bytearray()
        self._mute = False
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._http.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: max_frame,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 256,
            },
        )
        self._http.max_inbound_frame_size = max_frame  # which h2 takes from settings that are acknowledged alone
        self._http.initiate_connection()
        self._http.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self.flush()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether to call `flush` when the socket takes more."""
        return bool(self._unsent) and not self._mute

    def hold(self) -> None:
        """From now on, no window is given back for what comes."""
        self._holding = True

    def release(self) -> None:
        """Gives back all windows that were held."""
        self._holding = False
        for size, stream in self._held:
            self._http.acknowledge_received_data(size, stream)
        self._held.clear()
        self.flush()

    def resize(self, stream_window: int) -> None:
        """Gives all streams another window, those that are open too."""
        self.settled = False
        self._http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: stream_window})
        self.flush()

    def mute(self) -> None:
        """From now on, nothing is said: no answer, and no acknowledgement either."""
        self._mute = True

    def unmute(self) -> None:
        """Says in one piece all that was held back."""
        self._mute = False
        self.flush()

    def hang_up(self) -> None:
        """Ends the connection."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already
        self.ended = True

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> None:
        """Takes all that has come by now, and says what there is to say to it."""
        while not self.ended:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self.ended = True
                break
            for event in self._http.receive_data(data):
                self._take(event)
        self._send_pending()
        self.flush()

    def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._unsent += data
        self._send_unsent()

    def flush(self) -> None:
        """Sends what there is, as far as the socket takes it."""
        self._unsent += self._http.data_to_send()
        self._send_unsent()

    def answer(self, stream: int, message: bytes) -> None:
        """Sends a message and a status, as fast as the windows allow while `receive` is called."""
        if stream in self._unanswered:
            self._begin_answer(stream, message)
            self.flush()

    def answer_bytes(self, stream: int, message: bytes) -> bytes:
        """What `answer` would send; it has to fit into the windows."""
        assert stream in self._unanswered
        self.flush()
        self._begin_answer(stream, message)
        assert stream not in self._pending, "the answer is larger than the window for it"
        return self._http.data_to_send()

    def refuse(self, stream: int, status: int, message: str) -> None:
        """Sends a status alone; the call need not have come whole."""
        if self._requests.pop(stream, None) is not None:
            self._answered_early.add(stream)
        elif stream not in self._unanswered:
            return
        self._unanswered.discard(stream)
        trailers = [("grpc-status", str(status)), ("grpc-message", urllib.parse.quote(message, safe=" "))]
        self._http.send_headers(stream, _RESPONSE + trailers, end_stream=True)
        self.flush()

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self._begin(event)
            case h2.events.DataReceived():
                self._add(event)
            case h2.events.StreamEnded():
                self._ask(event.stream_id)
            case h2.events.StreamReset():
                self._give_up(event)
            case h2.events.SettingsAcknowledged():
                self.settled = True
            case h2.events.ConnectionTerminated():
                raise AssertionError(f"the worker says that we have broken the protocol: {event}")

    def _begin(self, event: h2.events.RequestReceived) -> None:
        headers = {str(name): str(value) for name, value in event.headers}
        assert _REQUEST.items() <= headers.items(), headers
        self._requests[event.stream_id] = bytearray()

    def _add(self, event: h2.events.DataReceived) -> None:
        assert event.data is not None
        assert event.flow_controlled_length is not None
        self.frames[event.stream_id].append(len(event.data))
        if event.stream_id not in self._answered_early:
            self._requests[event.stream_id] += event.data
        if self._holding:
            self._held.append((event.flow_controlled_length, event.stream_id))
        elif event.flow_controlled_length:
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _ask(self, stream: int) -> None:
        if stream in self._answered_early:
            return
        body = bytes(self._requests.pop(stream))
        assert _PREFIX.unpack_from(body) == (0, len(body) - _PREFIX.size)
        self._unanswered.add(stream)
        self.events.append(Asked(stream, pb.AskRequest.FromString(body[_PREFIX.size :]), self))

    def _give_up(self, event: h2.events.StreamReset) -> None:
        assert event.remote_reset, "we have reset it: the worker has sent what it may not"
        if event.stream_id in self._answered_early and event.error_code == h2.errors.ErrorCodes.NO_ERROR:
            self.left_off.append(event.stream_id)
            return
        assert event.error_code == h2.errors.ErrorCodes.CANCEL
        self._requests.pop(event.stream_id, None)
        self._pending.pop(event.stream_id, None)
        self._unanswered.discard(event.stream_id)
        self.events.append(GivenUp(event.stream_id))

    def _begin_answer(self, stream: int, message: bytes) -> None:
        self._unanswered.discard(stream)
        self._http.send_headers(stream, _RESPONSE)
        self._pending[stream] = memoryview(_PREFIX.pack(0, len(message)) + message)
        self._send_pending()

    def _send_pending(self) -> None:
        for stream in tuple(self._pending):
            rest = self._pending[stream]
            while rest:
                room = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)
                if room <= 0:
                    break
                self._http.send_data(stream, bytes(rest[:room]))
                rest = rest[room:]
            self._pending[stream] = rest
            if not rest:
                del self._pending[stream]
                self._http.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def _send_unsent(self) -> None:
        while self.has_unsent and not self.ended:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except ConnectionError:
                return  # what it has said before its end is still to be read
            del self._unsent[:sent]
