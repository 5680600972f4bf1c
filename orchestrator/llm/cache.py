"""Equal requests are made once: while one is in flight always, and later too when answers are kept.

Who joins a request in flight gets its reply as a cached one, for nothing; exactly one of those who wait pays. A caller
that streams neither joins nor is joined, since its pieces come in its own time; a kept answer reaches it in one piece.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.errors import ModelFailed, ModelFailure
from orchestrator.events import Event, Span
from orchestrator.seams import ChatModel, RequestTally, TextSink
from orchestrator.values import FinishReason, Message, Reply, Usage

_ENTRY_BYTES = 400  # of a kept answer beside its text: its key, its reply, its place


class AnswerCache:
    """The requests in flight, and the answers kept: least recently used ones go first. Shared by all models.

    With `max_bytes` 0 no answer is kept. It belongs to one event loop.
    """

    def __init__(self, max_bytes: int = 0, max_entries: int = 100_000) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._kept: OrderedDict[bytes, tuple[Reply, int]] = OrderedDict()
        self._bytes = 0
        self._flights: dict[bytes, _Flight] = {}

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: bytes) -> Reply | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        self._kept.move_to_end(key)
        return entry[0]

    def keep(self, key: bytes, reply: Reply) -> None:
        """Keeps a whole answer. One that was cut or refused is asked for again next time."""
        size = _ENTRY_BYTES + len(reply.text.encode("utf-8", "replace"))
        if reply.finish_reason is not FinishReason.STOP or not reply.text or size > self._max_bytes:
            return
        if (old := self._kept.pop(key, None)) is not None:
            self._bytes -= old[1]
        self._kept[key] = (reply, size)
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._kept) > self._max_entries:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped

    def flight(self, key: bytes) -> _Flight | None:
        return self._flights.get(key)

    def depart(self, key: bytes, flight: _Flight) -> None:
        self._flights[key] = flight

    def land(self, key: bytes, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


@dataclass(eq=False, slots=True)
class _Waiter:
    span: Span
    landed: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Flight:
    """One request that is being made for all who wait for it."""

    waiters: list[_Waiter] = field(default_factory=list)
    tally: RequestTally = field(default_factory=RequestTally)
    payer: _Waiter | None = None
    task: asyncio.Task[Reply] | None = None
    ended: bool = False

    def over(self, task: asyncio.Task[Reply]) -> None:
        if not task.cancelled():
            task.exception()  # seen: all who waited may be gone
        self.end()  # a task that is cancelled before it starts runs nothing of itself

    def end(self) -> None:
        """One of those who wait now pays, and all of them go on."""
        if not self.ended:
            self.ended = True
            self.payer = self.waiters[0] if self.waiters else None
            for waiter in self.waiters:
                if not waiter.landed.done():
                    waiter.landed.set_result(None)


@dataclass(frozen=True, slots=True)
class _SharedSpan(Span):
    """Writes what happens to a shared request on the span of each who waits for it at that time."""

    waiters: list[_Waiter]

    def emit(self, event: Event) -> None:
        for waiter in tuple(self.waiters):
            waiter.span.emit(event)


class Cached:
    """Shares requests through a cache.

    A shared request is cancelled when the last who waits for it is gone, and not before. Its failure goes to all who
    wait and is not kept.
    """

    def __init__(self, chat: ChatModel, cache: AnswerCache) -> None:
        self._chat = chat
        self._cache = cache

    @property
    def name(self) -> str:
        return self._chat.name

    @property
    def identity(self) -> str:
        return self._chat.identity

    async def chat(
        self,
        messages: Sequence[Message],
        span: Span,
        on_text: TextSink | None = None,
        *,
        max_output_tokens: int | None = None,
        tally: RequestTally | None = None,
    ) -> Reply:
        key = self._key(messages, max_output_tokens)
        if (kept := self._cache.find(key)) is not None:
            if on_text is not None:
                on_text(kept.text)
            return _free(kept)
        if on_text is not None:
            reply = await self._chat.chat(messages, span, on_text, max_output_tokens=max_output_tokens, tally=tally)
            self._cache.keep(key, reply)
            return reply
        flight = self._cache.flight(key) or self._depart(key, messages, span, max_output_tokens)
        return await self._wait(key, flight, span, tally or RequestTally())

    def _key(self, messages: Sequence[Message], max_output_tokens: int | None) -> bytes:
        digest = hashlib.blake2b(f"{self._chat.identity}\0{max_output_tokens}".encode(), digest_size=32)
        for message in messages:
            content = message.content.encode("utf-8", "surrogatepass")
            # The length keeps two messages apart from one that holds both texts.
            digest.update(f"\0{message.role.value}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.digest()

    def _depart(self, key: bytes, messages: Sequence[Message], span: Span, max_output_tokens: int | None) -> _Flight:
        flight = _Flight()
        shared = _SharedSpan(span.log, span.id, span.parent_id, span.kind, span.depth, flight.waiters)
        flight.task = asyncio.create_task(self._fly(key, flight, tuple(messages), shared, max_output_tokens))
        flight.task.add_done_callback(flight.over)
        self._cache.depart(key, flight)
        return flight

    async def _fly(
        self, key: bytes, flight: _Flight, messages: Sequence[Message], span: Span, max_output_tokens: int | None
    ) -> Reply:
        try:
            reply = await self._chat.chat(messages, span, max_output_tokens=max_output_tokens, tally=flight.tally)
            self._cache.keep(key, reply)
            return reply
        finally:
            # Here, and not when the task is done: those who wait go on a turn of the loop earlier.
            self._cache.land(key, flight)
            flight.end()

    async def _wait(self, key: bytes, flight: _Flight, span: Span, tally: RequestTally) -> Reply:
        assert flight.task is not None  # set before a flight can be found
        waiter = _Waiter(span, asyncio.get_running_loop().create_future())
        flight.waiters.append(waiter)
        try:
            await waiter.landed
        except asyncio.CancelledError:
            if flight.payer is waiter:
                # It came in just as its payer left: paid for, and read by nobody that knows the amount.
                tally.add(RequestTally(flight.tally.sent, max(0, flight.tally.closed - 1)))
            elif flight.waiters == [waiter] and not flight.ended:
                self._cache.land(key, flight)  # nobody joins a request that is being given up
                flight.task.cancel()
                await asyncio.wait({flight.task})
                tally.add(flight.tally)
            raise
        finally:
            flight.waiters.remove(waiter)
        if flight.payer is waiter:
            tally.add(flight.tally)
        if flight.task.cancelled():  # by the event loop's end; no waiter does that to another
            raise ModelFailed(ModelFailure.CONNECTION, self.name, "the shared request was given up")
        if (error := flight.task.exception()) is not None:
            raise error.with_traceback(None)
        reply = flight.task.result()
        return reply if flight.payer is waiter else _free(reply)


def _free(reply: Reply) -> Reply:
    return replace(reply, cached=True, cost_usd=0.0, usage=Usage())
