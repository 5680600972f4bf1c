"""Questions on their way to the host: how many at a time, whose answer is whose, and what ends with a cell.

Named tuples here and in the other modules of the worker: `dataclasses` would be a quarter of an idle worker's memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from guest_frames import Message, split
from worker_channel import Channel
from worker_interrupts import Interrupts
from worker_readers import BackgroundReader, Waiter

# gRPC drops calls past some thousands that are pending on a server: what is more than this waits here.
MAX_IN_FLIGHT = 64
MAX_BYTES_IN_FLIGHT = 48 << 20

Outcome = tuple[str, str]  # a reason and a text; the reason is empty for an answer


class Question(NamedTuple):
    """A prompt, and the data beside it: `kind` is "", "text", "json" or "bytes"; texts are UTF-8."""

    prompt: bytes
    kind: str
    data: bytes


def size_of(questions: list[Question]) -> int:
    """The bytes of the prompts and of the data beside them."""
    return sum([len(question.prompt) + len(question.data) for question in questions])


class Answered(NamedTuple):
    """One outcome a question, in the questions' order."""

    outcomes: list[Outcome]


class Refused(NamedTuple):
    """The host did not take the questions at all: `kind` is "invalid", "ended" or "failed"."""

    kind: str
    message: str


Reply = Answered | Refused
ENDED = Refused("ended", "the cell that asked has ended, or was interrupted")


class Ask:
    """One batch of questions. `on_reply` is called from any thread and must not block; only its first call counts."""

    __slots__ = (
        "awaited",
        "max_concurrent",
        "number",
        "on_reply",
        "questions",
        "recursive",
        "size",
        "stop_at_failure",
    )

    def __init__(
        self,
        questions: list[Question],
        max_concurrent: int,
        on_reply: Callable[[Reply], None],
        *,
        stop_at_failure: bool,
        recursive: bool | None,
        awaited: bool = False,
    ) -> None:
        """`awaited`: no thread waits for the reply, so one has to read in its place."""
        self.questions = questions
        self.max_concurrent = max_concurrent
        self.on_reply = on_reply
        self.stop_at_failure = stop_at_failure
        self.recursive = recursive
        self.awaited = awaited
        self.number = 0
        self.size = size_of(questions)


class Asks:
    """All asks of this process; its methods may be called from any thread."""

    def __init__(self, channel: Channel, interrupts: Interrupts) -> None:
        self._channel = channel
        self._interrupts = interrupts
        self._lock = threading.Lock()
        self._waiting: deque[Ask] = deque()
        self._in_flight: dict[int, Ask] = {}
        self._bytes = 0
        self._number = 0
        self._background = BackgroundReader(channel.readers)
        self.process = channel.process  # the one that can ask: a forked child has no connection

    def start(self, ask: Ask) -> None:
        """Sends the questions, now or when others have been answered.

        Raises:
            RuntimeError: the ask is awaited, and no thread can be started to read.
        """
        with self._interrupts:
            with self._lock:
                if ask.awaited:
                    self._background.begin()  # to the end of the cell: to stop and go costs more than a hand-over
                self._waiting.append(ask)
            self._send_what_fits()

    def wait(self, waiter: Waiter) -> None:
        """Returns when the waiter is finished; this thread may read meanwhile. Raises KeyboardInterrupt."""
        self._channel.readers.wait(waiter)

    def finish(self, waiter: Waiter) -> None:
        """Ends a wait."""
        self._channel.readers.finish(waiter)

    def cancel(self, ask: Ask) -> None:
        """Nobody waits for this any more: the host is told, so that nobody pays for it."""
        with self._interrupts:
            with self._lock:
                if ask in self._waiting:
                    self._waiting.remove(ask)
                    return
                if not self._take(ask):
                    return
            self._channel.send({"op": "cancel", "id": ask.number})
            self._send_what_fits()

    def end_cell(self) -> None:
        """Fails every ask: no answer is coming any more. Called when the cell cannot be interrupted any more."""
        with self._lock:
            asks = [*self._in_flight.values(), *self._waiting]
            self._in_flight.clear()
            self._waiting.clear()
            self._bytes = 0
            self._background.end()
        for ask in asks:
            ask.on_reply(ENDED)

    def take_reply(self, message: Message, data: bytes) -> None:
        """An answer from the agent, on the thread that reads. One that was broken off may come again."""
        ask = self._in_flight.get(message["id"])
        if ask is None:
            return
        if "refused" in message:
            kind, text = message["refused"]
            ask.on_reply(Refused(kind, text))
        else:
            slots = message["slots"]
            texts = split(data, [size for _, size in slots])
            ask.on_reply(
                Answered([(slot[0], text.decode("utf-8", "replace")) for slot, text in zip(slots, texts, strict=True)])
            )
        # Last, so that the reply is still expected when this has to be done again.
        with self._lock:
            self._take(ask)
        self._send_what_fits()

    def _take(self, ask: Ask) -> bool:
        if self._in_flight.pop(ask.number, None) is None:
            return False
        self._bytes -= ask.size
        return True

    def _send_what_fits(self) -> None:
        while self._waiting:
            with self._lock:
                if not self._waiting:
                    return
                ask = self._waiting[0]
                full = len(self._in_flight) >= MAX_IN_FLIGHT or self._bytes + ask.size > MAX_BYTES_IN_FLIGHT
                if full and self._in_flight:
                    return
                self._waiting.popleft()
                self._number += 1
                ask.number = self._number
                self._in_flight[ask.number] = ask
                self._bytes += ask.size
            shapes: list[tuple[int, str, int]] = []
            pieces: list[bytes] = []
            for prompt, kind, data in ask.questions:
                shapes.append((len(prompt), kind, len(data)))
                pieces += prompt, data
            self._channel.send(
                {
                    "op": "ask",
                    "id": ask.number,
                    "max_concurrent": ask.max_concurrent,
                    "stop_at_failure": ask.stop_at_failure,
                    "recursive": ask.recursive,
                    "questions": shapes,
                },
                *pieces,
            )
