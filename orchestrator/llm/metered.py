"""Each model call has its span, its price and its place in the tree's budget, however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.budget import Budget, Wanted
from orchestrator.events import ModelCallEnded, ModelCallStarted, Outcome, Span, SpanKind
from orchestrator.llm.prices import Price
from orchestrator.seams import ChatModel, RequestTally, TextSink
from orchestrator.values import Message, Reply, Spent, Usage

# What chat templates put around a message: role names and separators. OpenAI's own take 3 or 4 tokens.
_MESSAGE_TOKENS = 16
# Typical of English text and code with byte-pair encodings; for estimates, never for bounds.
_BYTES_PER_TOKEN = 4
# Asked for under a token or cost limit when no output limit is set: room for a long answer and its reasoning.
DEFAULT_OUTPUT_TOKENS = 16_384


class Metered:
    """Reserves before a call and settles after it, also one that fails or is cancelled.

    Emits `ModelCallStarted` and `ModelCallEnded` on a child of the caller's span, and sets `Reply.cost_usd`. What a
    call used and the API did not tell is estimated from its text, and counted in `Spent.estimated_calls`. The event
    has what the budget was charged, so that a record and the bill agree.
    """

    def __init__(
        self,
        chat: ChatModel,
        budget: Budget,
        price: Price | None = None,
        *,
        max_output_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chat = chat
        self._budget = budget
        self._price = price
        self._output_tokens = max_output_tokens or DEFAULT_OUTPUT_TOKENS
        self._clock = clock

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
        child = span.child(SpanKind.MODEL)
        child.emit(ModelCallStarted(self.name, tuple(messages)))
        started = self._clock()
        outcome, error = Outcome.CANCELLED, ""
        reply: Reply | None = None
        bill = _Bill()  # what the budget was charged
        try:
            reply = await self._reserved(messages, child, on_text, max_output_tokens, tally or RequestTally(), bill)
            outcome = Outcome.OK
            return reply
        except Exception as failure:
            outcome, error = Outcome.FAILED, str(failure)
            raise
        finally:
            spent = bill.spent
            heard = reply is not None and not reply.cached
            used = spent.usage if heard or spent.usage.total_tokens else None
            child.emit(
                ModelCallEnded(
                    outcome=outcome,
                    text=reply.text if reply else None,
                    finish_reason=reply.finish_reason if reply else None,
                    usage=used,
                    cost_usd=spent.cost_usd if used is not None and self._price is not None else None,
                    cached=reply.cached if reply else False,
                    model=reply.model if reply else self.name,
                    seconds=self._clock() - started,
                    error=error,
                    estimated=spent.estimated_calls > 0,
                    requested=spent.calls > 0,
                )
            )

    async def _reserved(
        self,
        messages: Sequence[Message],
        span: Span,
        on_text: TextSink | None,
        max_output_tokens: int | None,
        tally: RequestTally,
        bill: _Bill,
    ) -> Reply:
        size = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)
        output = self._output_tokens if max_output_tokens is None else min(self._output_tokens, max_output_tokens)
        wanted = Wanted(self.name, span.depth, _most_tokens(size, len(messages)), output, price=self._price)
        read = _Read(on_text)
        async with self._budget.reserve(wanted) as reservation:
            allowed = reservation.max_output_tokens
            try:
                reply = await self._chat.chat(
                    messages,
                    span,
                    read if on_text is not None else None,
                    max_output_tokens=max_output_tokens if allowed is None else allowed,
                    tally=tally,
                )
            except BaseException:
                # Cancellation included: what was sent is paid for.
                bill.spent = self._lost(tally, size, read.size, failed=True)
                raise
            else:
                if reply.cached:
                    bill.spent = Spent(cached_calls=1)
                    return reply
                bill.spent = self._answered(reply, size, read.size, tally)
            finally:
                reservation.settle(bill.spent)
            cost = self._cost(reply.usage)
            return reply if cost == reply.cost_usd else replace(reply, cost_usd=cost)

    def _answered(self, reply: Reply, asked: int, heard: int, tally: RequestTally) -> Spent:
        """What it cost; with `asked` and `heard` bytes, as for `_lost`."""
        told = reply.usage is not None
        usage = reply.usage or _estimate(asked, len(reply.text.encode("utf-8", "surrogatepass")))
        cost = self._cost(usage)
        if told and not tally.open:
            return Spent(calls=1, usage=usage, cost_usd=cost or 0.0, unpriced_calls=int(cost is None))
        # What was streamed beside the answer came of tries that broke off.
        beside = max(0, heard - len(reply.text.encode("utf-8", "surrogatepass")))
        lost = self._lost(tally, asked, beside, failed=False)
        return Spent(
            calls=1,
            usage=usage + lost.usage,
            cost_usd=(cost or 0.0) + lost.cost_usd,
            unpriced_calls=int(cost is None),
            estimated_calls=int(not told or lost.usage.total_tokens > 0),
        )

    def _lost(self, tally: RequestTally, asked: int, heard: int, *, failed: bool) -> Spent:
        """What the requests cost that the API may have answered without anybody hearing it, or not to its end.

        `asked` are the bytes of one of them, `heard` those that came of all of them together.
        """
        each = _estimate(asked, heard)
        usage = Usage(each.input_tokens * tally.open, each.output_tokens if tally.open else 0)
        cost = self._cost(usage)
        made = int(failed and tally.sent > 0)
        return Spent(
            calls=made,
            failed_calls=made,
            usage=usage,
            cost_usd=cost or 0.0,
            unpriced_calls=int(cost is None and made and tally.open > 0),
            estimated_calls=int(made and tally.open > 0),
        )

    def _cost(self, usage: Usage | None) -> float | None:
        return None if usage is None or self._price is None else self._price(usage)


@dataclass(slots=True)
class _Bill:
    spent: Spent = field(default_factory=Spent)


class _Read:
    """Passes a stream's pieces on, and knows how much came."""

    def __init__(self, on_text: TextSink | None) -> None:
        self._on_text = on_text
        self.size = 0  # bytes

    def __call__(self, text: str) -> None:
        self.size += len(text.encode("utf-8", "surrogatepass"))
        if self._on_text is not None:
            self._on_text(text)


def _most_tokens(size: int, messages: int) -> int:
    """An upper bound: a token of a byte-level encoding is at least one byte of UTF-8."""
    return size + _MESSAGE_TOKENS * (messages + 1)


def _estimate(input_bytes: int, output_bytes: int) -> Usage:
    return Usage(-(-input_bytes // _BYTES_PER_TOKEN), -(-output_bytes // _BYTES_PER_TOKEN))
