"""Questions of the running cell, on their way to the host and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio
from guest_frames import FrameError, Message, split
from rlm.guest.v1 import guest_pb2 as pb
from rlm.guest.v1.guest_pb2_grpc import GuestServiceStub

MAX_IN_FLIGHT = 64
MAX_BYTES_IN_FLIGHT = 64 << 20
MAX_QUESTIONS = 10_000

KINDS = {"text": pb.CONTEXT_KIND_TEXT, "json": pb.CONTEXT_KIND_JSON, "bytes": pb.CONTEXT_KIND_BYTES}
_REASONS = {value: name.removeprefix("FAILURE_REASON_").lower() for name, value in pb.FailureReason.items()}
_INVALID = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Asks:
    """The calls in flight; all of them end with the cell."""

    def __init__(
        self, stub: GuestServiceStub, reply: Callable[..., None], changed: Callable[[int, bool], None]
    ) -> None:
        """`reply` sends a message and its data to the worker.

        `changed` is told how many calls are in flight, and whether no more should be taken now.
        """
        self._stub: Any = stub
        self._reply = reply
        self._changed = changed
        self._calls: dict[int, tuple[asyncio.Task[None], int]] = {}
        self._bytes = 0
        self._ending: set[asyncio.Task[None]] = set()

    def start(self, message: Message, data: bytes) -> None:
        """Asks the host what the worker asks.

        Raises:
            FrameError: this is no ask.
        """
        number, limit = message["id"], message["max_concurrent"]
        if type(number) is not int or type(limit) is not int or not 1 <= limit < 1 << 31 or number in self._calls:
            raise FrameError("an ask without an id of its own or with a bad max_concurrent")
        request = _request(message["questions"], limit, data)
        self._bytes += len(data)
        task = asyncio.ensure_future(self._ask(number, request))
        self._calls[number] = task, len(data)
        task.add_done_callback(lambda _: self._done(number, task))
        self._tell()

    def refuse(self, number: object) -> None:
        """Answers an ask that comes when no cell runs that could wait for it.

        Raises:
            FrameError: the number is none.
        """
        if type(number) is not int:
            raise FrameError("an ask without an id")
        self._reply({"op": "reply", "id": number, "refused": ["ended", "no cell runs that could wait for an answer"]})

    def cancel(self, number: object) -> None:
        """The code waits for this one no more."""
        call = self._calls.get(number) if type(number) is int else None
        if call:
            call[0].cancel()

    def cancel_all(self) -> list[int]:
        """The cell has ended, or is to end: nobody should pay for an answer that nobody reads.

        Returns the numbers of the asks that were in flight. None of them counts any more, though a cancelled call
        may take a moment to end.
        """
        numbers = list(self._calls)
        for task, _ in self._calls.values():
            self._ending.add(task)
            task.cancel()
        self._calls.clear()
        self._bytes = 0
        return numbers

    def _done(self, number: int, task: asyncio.Task[None]) -> None:
        if task in self._ending:
            self._ending.discard(task)
            return
        _, size = self._calls.pop(number)
        self._bytes -= size
        self._tell()

    def _tell(self) -> None:
        full = len(self._calls) >= MAX_IN_FLIGHT or self._bytes >= MAX_BYTES_IN_FLIGHT
        self._changed(len(self._calls), full)

    async def _ask(self, number: int, request: pb.AskRequest) -> None:
        try:
            response: pb.AskResponse = await self._stub.Ask(request)
        except grpc.aio.AioRpcError as error:
            kind = "invalid" if error.code() in _INVALID else "failed"
            refused = [kind, (error.details() or "the host could not be asked")[:2000]]
            self._reply({"op": "reply", "id": number, "refused": refused})
            return
        slots, texts = [], []
        for slot in response.slots:
            failed = slot.WhichOneof("outcome") != "text"
            text = (slot.failure.message if failed else slot.text).encode()
            reason = _REASONS.get(slot.failure.reason, "unspecified") if failed else ""
            slots.append([reason, len(text)])
            texts.append(text)
        if len(slots) != len(request.questions):
            refused = ["failed", f"{len(request.questions)} questions got {len(slots)} answers"]
            self._reply({"op": "reply", "id": number, "refused": refused})
        else:
            self._reply({"op": "reply", "id": number, "slots": slots}, *texts)


def _request(questions: Any, limit: int, data: bytes) -> pb.AskRequest:
    if type(questions) is not list or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise FrameError("an ask without questions, or with too many")
    pieces = iter(split(data, [size for prompt, _, context in questions for size in (prompt, context)]))
    request = pb.AskRequest(max_concurrent=limit)
    for _, kind, _ in questions:
        prompt, context = next(pieces), next(pieces)
        question = request.questions.add(prompt=prompt.decode())
        if kind:
            question.context.kind = KINDS[kind]
            question.context.data = context
    return request
