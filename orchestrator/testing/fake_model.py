"""A chat model without a network: a policy answers, and every call is on record.

::

    model = FakeChatModel(lambda messages: f"You said: {messages[-1].content}")
    model = FakeChatModel(lambda messages: ModelFailed(ModelFailure.SERVER, "fake", "status 500"))

A policy may be a coroutine function too. To hold calls in flight, clear the gate; a held call can be
cancelled::

    model.gate.clear()
    task = asyncio.create_task(model.chat(messages, span))
    await model.until(lambda: model.in_flight == 1)
    model.gate.set()
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.events import Span
from orchestrator.seams import RequestTally, TextSink
from orchestrator.values import FinishReason, Message, Reply, Usage

Outcome: TypeAlias = str | Reply | Exception
Policy: TypeAlias = Callable[[Sequence[Message]], Outcome | Awaitable[Outcome]]

CHARACTERS_PER_TOKEN = 4
_PIECE = 7  # characters of a streamed piece: short, and never aligned with anything a test might rely on


@dataclass(frozen=True, slots=True)
class FakeCall:
    """One call as it arrived."""

    messages: tuple[Message, ...]
    span: Span
    streamed: bool
    max_output_tokens: int | None


class FakeChatModel:
    """Implements `seams.ChatModel` with a policy; counts what is in flight.

    An exception that the policy returns or raises is raised by `chat`. A `str` becomes a reply with one token for
    every 4 characters begun, on both sides. A text over `max_output_tokens` is cut there, as a real model's is.
    """

    def __init__(self, policy: Policy, name: str = "fake") -> None:
        self._policy = policy
        self._name = name
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[FakeCall] = []
        self.in_flight = 0
        self.peak_in_flight = 0
        self.cancelled = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> str:
        return self._name

    async def chat(
        self,
        messages: Sequence[Message],
        span: Span,
        on_text: TextSink | None = None,
        *,
        max_output_tokens: int | None = None,
        tally: RequestTally | None = None,
    ) -> Reply:
        tally = tally or RequestTally()
        tally.sent += 1
        self.calls.append(FakeCall(tuple(messages), span, on_text is not None, max_output_tokens))
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self._notify()
        try:
            await asyncio.sleep(0)  # a call over a network never comes back before others had their turn
            await self.gate.wait()
            outcome = self._policy(messages)
            if inspect.isawaitable(outcome):
                outcome = await outcome
            reply = self._reply(outcome, messages, max_output_tokens)
            if on_text is not None:
                for start in range(0, len(reply.text), _PIECE):
                    on_text(reply.text[start : start + _PIECE])
                    await asyncio.sleep(0)  # a stream gives others a turn between its pieces
            tally.closed += 1
            return reply
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except Exception:
            tally.closed += 1  # a policy's failure stands for a request that the API turned down
            raise
        finally:
            self.in_flight -= 1
            self._notify()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once the condition holds; it is checked whenever a call starts or ends."""
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((condition, future))
        await future

    def _notify(self) -> None:
        for condition, future in self._waiters:
            if not future.done() and condition():
                future.set_result(None)
        self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]

    def _reply(self, outcome: Outcome, messages: Sequence[Message], max_output_tokens: int | None) -> Reply:
        match outcome:
            case Exception():
                raise outcome
            case Reply():
                return outcome
            case str():
                text = outcome
        finish = FinishReason.STOP
        if max_output_tokens is not None and _tokens(text) > max_output_tokens:
            text = text[: max_output_tokens * CHARACTERS_PER_TOKEN]
            finish = FinishReason.LENGTH
        usage = Usage(sum(_tokens(message.content) for message in messages), _tokens(text))
        return Reply(text, finish, usage, self._name)


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)
