"""Questions of the running cell, on their way to the host and back."""

from __future__ import annotations

import guest_messages as pb
from agent_grpc import INVALID_ARGUMENT, OK, RESOURCE_EXHAUSTED
from guest_frames import FrameError, Message, split

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_grpc import Call, OnEnd, OnMessage

    Begin = Callable[[OnMessage, OnEnd], Call]

MAX_IN_FLIGHT = 64
MAX_BYTES_IN_FLIGHT = 68 << 20  # bytes: above one frame of the largest size
MAX_QUESTIONS = 10_000

KINDS = {"text": pb.CONTEXT_KIND_TEXT, "json": pb.CONTEXT_KIND_JSON, "bytes": pb.CONTEXT_KIND_BYTES}
_REASONS = {value: name.removeprefix("FAILURE_REASON_").lower() for name, value in pb.FailureReason.items()}
_INVALID = {INVALID_ARGUMENT, RESOURCE_EXHAUSTED}


class Asks:
    """The calls in flight; all of them end with the cell."""

    def __init__(self, begin: Begin, reply: Callable[..., None], changed: Callable[[int], None]) -> None:
        """`begin` begins a call of Ask; `reply` sends a message and its data to the worker.

        `changed` is told how many calls are in flight.
        """
        self._begin = begin
        self._reply = reply
        self._changed = changed
        self._calls: dict[int, tuple[Call, int]] = {}
        self._bytes = 0

    def start(self, message: Message, data: bytes) -> None:
        """Asks the host what the worker asks.

        Raises:
            FrameError: this is no ask.
        """
        number, limit = message["id"], message["max_concurrent"]
        if type(number) is not int or type(limit) is not int or not 1 <= limit < 1 << 31 or number in self._calls:
            raise FrameError("an ask without an id of its own or with a bad max_concurrent")
        if len(self._calls) >= MAX_IN_FLIGHT or self._bytes + len(data) > MAX_BYTES_IN_FLIGHT:
            # The worker keeps to less, so this is code in its place; and to read no more would be deaf to a cell's end.
            self._refuse(number, "invalid", "too many questions are in flight")
            return
        request = _request(message, limit, data)
        asked = len(request.questions)
        answers: list[bytes] = []
        call = self._begin(answers.append, lambda status, details: self._ended(number, asked, answers, status, details))
        self._calls[number] = call, len(data)
        self._bytes += len(data)
        call.send(request.encode(), last=True)
        self._changed(len(self._calls))

    def refuse(self, number: object) -> None:
        """Answers an ask that comes when no cell runs that could wait for it.

        Raises:
            FrameError: the number is none.
        """
        if type(number) is not int:
            raise FrameError("an ask without an id")
        self._refuse(number, "ended", "no cell runs that could wait for an answer")

    def cancel(self, number: object) -> None:
        """The code waits for this one no more."""
        if type(number) is int and number in self._calls:
            self._forget(number).cancel()
            self._changed(len(self._calls))

    def cancel_all(self) -> list[int]:
        """The cell has ended, or is to end: nobody should pay for an answer that nobody reads.

        Returns the numbers of the asks that were in flight.
        """
        numbers = list(self._calls)
        for number in numbers:
            self._forget(number).cancel()
        return numbers

    def _forget(self, number: int) -> Call:
        call, size = self._calls.pop(number)
        self._bytes -= size
        return call

    def _ended(self, number: int, asked: int, answers: list[bytes], status: int, details: str) -> None:
        self._forget(number)
        if status == OK:
            self._answer(number, asked, answers)
        else:
            kind = "invalid" if status in _INVALID else "failed"
            self._refuse(number, kind, (details or "the host could not be asked")[:2000])
        self._changed(len(self._calls))

    def _answer(self, number: int, asked: int, answers: list[bytes]) -> None:
        try:
            (answer,) = answers
            response = pb.AskResponse.decode(answer)
        except ValueError:
            self._refuse(number, "failed", "the host's answer cannot be read")
            return
        slots, texts = [], []
        for slot in response.slots:
            if slot.text is not None:
                reason, text = "", slot.text.encode()
            else:
                failure = slot.failure or pb.Failure()
                reason, text = _REASONS.get(failure.reason, "unspecified"), failure.message.encode()
            slots.append(f'["{reason}",{len(text)}]')
            texts.append(text)
        if len(slots) != asked:
            self._refuse(number, "failed", f"{asked} questions got {len(slots)} answers")
        else:
            # As text, since there is one for each question, and each is a reason of ours and a number.
            self._reply(f'{{"op":"reply","id":{number},"slots":[{",".join(slots)}]}}', *texts)

    def _refuse(self, number: int, kind: str, text: str) -> None:
        self._reply({"op": "reply", "id": number, "refused": [kind, text]})


def _request(message: Message, limit: int, data: bytes) -> pb.AskRequest:
    questions, stop, recursive = message["questions"], message["stop_at_failure"], message["recursive"]
    if type(stop) is not bool or (recursive is not None and type(recursive) is not bool):
        raise FrameError("an ask with wishes that are no yes or no")
    if type(questions) is not list or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise FrameError("an ask without questions, or with too many")
    pieces = split(data, [size for prompt, _, context in questions for size in (prompt, context)])
    return pb.AskRequest(
        questions=[
            pb.Question(prompt=prompt.decode(), context=pb.Attachment(kind=KINDS[kind], data=context) if kind else None)
            for (_, kind, _), prompt, context in zip(questions, pieces[::2], pieces[1::2], strict=True)
        ],
        max_concurrent=limit,
        stop_at_failure=stop,
        recursive=recursive,
    )
