"""The one place where model calls are tried again.

Exponential back-off with equal jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015), so that callers that
failed together do not come back together. The API's own `Retry-After` wins over it, up to a cap.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.errors import InvalidInput, ModelFailed, ModelFailure
from orchestrator.events import ModelRetried, Span
from orchestrator.seams import ChatModel, RequestTally, TextSink
from orchestrator.values import Message, Reply

if TYPE_CHECKING:
    from tenacity import RetryCallState

# Whether the same request may succeed later. Every kind is here, so that a new one must be decided on.
RETRYABLE: dict[ModelFailure, bool] = {
    ModelFailure.RATE_LIMITED: True,
    ModelFailure.SERVER: True,
    ModelFailure.CONNECTION: True,
    ModelFailure.TIMED_OUT: True,
    ModelFailure.MALFORMED: True,  # a proxy's page, or half of an answer
    ModelFailure.AUTHENTICATION: False,
    ModelFailure.QUOTA: False,
    ModelFailure.TOO_LONG: False,
    ModelFailure.REFUSED: False,
    ModelFailure.REJECTED: False,
    ModelFailure.NOT_FOUND: False,
}

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Backoff:
    """When to try again. The wait before attempt n+1 is random in `[base/2, base]`, base `first_s * 2**(n-1)`."""

    first_s: float = 0.5
    max_s: float = 30.0
    max_retry_after_s: float = 120.0  # an API that asks for more is not waited for any longer than this

    def wait_s(self, attempt: int, error: BaseException | None, draw: Callable[[], float]) -> float:
        """Seconds to wait after the failed attempt with this number (from 1); `draw` gives a number in [0, 1)."""
        # An exponent past 60 says nothing that the cap does not, and overflows a float at 1024.
        base: float = min(self.max_s, self.first_s * 2.0 ** min(attempt - 1, 60))
        jittered = base / 2 + draw() * base / 2
        asked = error.retry_after_s if isinstance(error, ModelFailed) else None
        if asked is None:
            return jittered
        # Those who were told the same moment must not all come at that moment.
        return min(asked, self.max_retry_after_s) + draw() * min(base, 1.0) / 4


class Retried:
    """Tries a call again when its failure may pass. Holds no slot while it waits, being outside of `Throttled`.

    `max_attempts` counts the first one too. Emits `ModelRetried` on the call's span. The last failure is raised with
    the number of attempts in it.
    """

    def __init__(
        self,
        chat: ChatModel,
        max_attempts: int = 6,
        *,
        backoff: Backoff | None = None,
        sleep: Sleep = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if max_attempts < 1:
            raise InvalidInput("max_attempts", f"must be at least 1; it is {max_attempts}.", "1 means no retries.")
        self._chat = chat
        self._max_attempts = max_attempts
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._draw = draw

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
        async def attempt() -> Reply:
            return await self._chat.chat(messages, span, on_text, max_output_tokens=max_output_tokens, tally=tally)

        try:
            return await attempt()
        except ModelFailed as error:
            if self._max_attempts == 1 or not _is_retryable(error):
                raise
            failed = error
        return await self._again(failed, attempt, span)

    async def _again(self, failed: ModelFailed, attempt: Callable[[], Awaitable[Reply]], span: Span) -> Reply:
        """After a first attempt that failed. The machinery of a retry costs as much as a quarter of a call."""
        # tenacity and not stamina: its sleep and its hook are arguments of one call, so that the wait can be told on
        # that call's span and tests need no clock; stamina's are set for the whole process.
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        first: ModelFailed | None = failed

        async def next_attempt() -> Reply:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            return await attempt()

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return self._backoff.wait_s(state.attempt_number, error, self._draw)

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            reason = f"{error.kind.value}: {error.detail}" if isinstance(error, ModelFailed) else repr(error)
            span.emit(ModelRetried(state.attempt_number, state.upcoming_sleep, reason))

        attempts = AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(self._max_attempts),
            wait=wait,
            retry=retry_if_exception(_is_retryable),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return await attempts(next_attempt)
        except ModelFailed as error:
            raise _after(error, int(attempts.statistics.get("attempt_number", 1))) from None


def _after(error: ModelFailed, attempts: int) -> ModelFailed:
    return ModelFailed(
        error.kind,
        error.model,
        error.detail,
        status=error.status,
        attempts=attempts,
        retry_after_s=error.retry_after_s,
    )


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, ModelFailed) and RETRYABLE[error.kind]
