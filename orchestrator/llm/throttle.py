"""How many API requests are in flight at a time, over all runs, depths and models of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orchestrator.errors import InvalidInput
from orchestrator.events import Span
from orchestrator.seams import ChatModel, RequestTally, TextSink
from orchestrator.values import Message, Reply


class Throttle:
    """The one semaphore that all `Throttled` of a process share. First come, first served."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InvalidInput("max_concurrent", f"must be at least 1; it is {size}.", "Set RLM_MAX_CONCURRENT.")
        self.size = size
        self._semaphore = asyncio.Semaphore(size)
        self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    async def __aenter__(self) -> None:
        await self._semaphore.acquire()
        self._taken += 1

    async def __aexit__(self, *exc_info: object) -> None:
        self._taken -= 1
        self._semaphore.release()


class Throttled:
    """Holds a slot around the API request and nothing else: a parent that waits for its children has none.

    So concurrency cannot multiply with depth, and a deep tree cannot lock itself out.
    """

    def __init__(self, chat: ChatModel, throttle: Throttle) -> None:
        self._chat = chat
        self._throttle = throttle

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
        async with self._throttle:
            return await self._chat.chat(messages, span, on_text, max_output_tokens=max_output_tokens, tally=tally)
