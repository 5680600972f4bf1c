"""The one way in which a cell's questions are answered: `llm_query` is a batch of one.

One failure never fails the batch: its slot says so. Only cancellation passes through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from orchestrator.errors import RLMError
from orchestrator.events import (
    BatchEnded,
    BatchStarted,
    Outcome,
    QueryEnded,
    QueryStarted,
    Span,
    SpanKind,
)
from orchestrator.rlm.ended import ended
from orchestrator.rlm.failures import as_slot, failed
from orchestrator.seams import ContextStore, LanguageModel
from orchestrator.values import Answered, Batch, Failed, FailureReason, Prompt, Question, Slot

logger = logging.getLogger(__name__)

CONTEXT_HOLDS_THE_TASK: Final = "Do what the context asks. It is the whole task: instructions, and data if any."
SHORT_PROMPT_CHARS: Final = 2_000  # up to this a prompt is repeated as the child's query


class Questions:
    """Answers batches with one language model, plain or recursive without the asking code knowing."""

    def __init__(self, sub: LanguageModel, contexts: ContextStore) -> None:
        self._sub = sub
        self._contexts = contexts

    async def answer(self, batch: Batch, span: Span) -> tuple[Slot, ...]:
        """A slot for each question, in their order; equal questions are asked once and answered everywhere.

        At most `batch.max_concurrent` are asked at a time. `span` is the cell's. Raises nothing but
        `asyncio.CancelledError`, which stops all that is in flight and waits for it.
        """
        if batch.max_concurrent < 1:
            refused = failed(FailureReason.INVALID, "max_concurrent must be at least 1")
            return (refused,) * len(batch.questions)
        if not batch.questions:
            return ()
        first_at: dict[Question, int] = {}
        for index, question in enumerate(batch.questions):
            first_at.setdefault(question, index)
        slots: dict[Question, Slot] = {}
        batch_span = span.child(SpanKind.BATCH)
        batch_span.emit(BatchStarted(len(batch.questions), len(first_at), batch.max_concurrent))

        def end(outcome: Outcome, error: str) -> BatchEnded:
            return BatchEnded(outcome, sum(isinstance(slots.get(asked), Failed) for asked in batch.questions))

        with ended(batch_span.emit, end):
            room = asyncio.Semaphore(batch.max_concurrent)

            async def ask(question: Question, index: int) -> None:
                async with room:
                    slots[question] = await self._ask(question, index, batch_span)

            # No `yield` in this group, and its tasks raise nothing: no ExceptionGroup can come out of it.
            async with asyncio.TaskGroup() as group:
                for question, index in first_at.items():
                    group.create_task(ask(question, index))
        return tuple(slots[question] for question in batch.questions)

    async def _ask(self, question: Question, index: int, batch_span: Span) -> Slot:
        # A sub-call belongs to the depth below, plain ones too: cost by depth is read off the spans.
        span = batch_span.child(SpanKind.QUERY, depth=batch_span.depth + 1)
        span.emit(QueryStarted(index, question.prompt, self._sub.recursive))
        outcome, text, failure, error = Outcome.CANCELLED, None, None, ""
        try:
            text = await self._complete(question, span)
            outcome = Outcome.OK
            return Answered(text)
        except Exception as reason:
            if not isinstance(reason, RLMError):
                logger.exception("a sub-call failed in an unforeseen way")
            slot = as_slot(reason)
            outcome, failure, error = Outcome.FAILED, slot.reason, str(reason) or type(reason).__name__
            return slot
        finally:
            span.emit(QueryEnded(outcome, text, failure, error))

    async def _complete(self, question: Question, span: Span) -> str:
        async with self._prompt(question) as prompt:
            return (await self._sub.completion(prompt, span)).text

    @asynccontextmanager
    async def _prompt(self, question: Question) -> AsyncIterator[Prompt]:
        """The question as a prompt; what had to be stored for it is dropped after the block."""
        query = question.prompt if question.prompt.strip() else CONTEXT_HOLDS_THE_TASK
        if question.attachment is not None:
            context = await self._contexts.put_attachment(question.attachment)
        elif self._sub.recursive:
            # A recursive sub-call finds its prompt as `context`, where its code can work on it.
            context = await self._contexts.put(question.prompt)
            if len(query) > SHORT_PROMPT_CHARS:
                query = CONTEXT_HOLDS_THE_TASK
        else:
            yield Prompt(question.prompt)
            return
        try:
            yield Prompt(query, context)
        finally:
            try:
                await self._contexts.drop(context)
            except Exception:
                # The answer is there and paid for; the store's own sweep finds the file.
                logger.exception("a sub-call's context could not be removed")
