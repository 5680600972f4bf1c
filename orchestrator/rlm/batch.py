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
    SubCallChoice,
)
from orchestrator.rlm.deadline import in_time
from orchestrator.rlm.ended import ended
from orchestrator.rlm.failures import as_slot, failed
from orchestrator.seams import ContextStore, LanguageModel
from orchestrator.values import Answered, Batch, ContextKind, Deadline, Failed, FailureReason, Prompt, Question, Slot

logger = logging.getLogger(__name__)

CONTEXT_HOLDS_THE_TASK: Final = "Do what the context asks. It is the whole task: instructions, and data if any."
SHORT_PROMPT_CHARS: Final = 2_000  # up to this a prompt is repeated as the child's query


class Questions:
    """Answers batches with one language model, plain or recursive without the asking code knowing.

    `plain` stands in for a recursive `sub` where the code asks for that, and for questions of at most `plain_chars`
    characters, their data included, unless the code insists.
    """

    def __init__(
        self, sub: LanguageModel, contexts: ContextStore, plain: LanguageModel | None = None, plain_chars: int = 0
    ) -> None:
        self._sub = sub
        self._contexts = contexts
        self._plain = plain
        self._plain_chars = plain_chars

    async def answer(self, batch: Batch, span: Span, deadline: Deadline | None = None) -> tuple[Slot, ...]:
        """A slot for each question, in their order; equal questions are asked once and answered everywhere.

        At most `batch.max_concurrent` are asked at a time, and none that is not answered by `deadline`. `span` is the
        cell's. Raises nothing but `asyncio.CancelledError`, which stops all that is in flight and waits for it.
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
            tasks: set[asyncio.Task[None]] = set()

            async def ask(question: Question, index: int) -> None:
                async with room:
                    model, choice = self._model_for(question, batch.recursive)
                    slots[question] = await self._ask(question, index, batch_span, model, choice, deadline)
                if batch.stop_at_failure and isinstance(slots[question], Failed):
                    for task in tasks - {asyncio.current_task()}:
                        task.cancel()

            # No `yield` in this group, and its tasks raise nothing: no ExceptionGroup can come out of it.
            async with asyncio.TaskGroup() as group:
                for question, index in first_at.items():
                    tasks.add(group.create_task(ask(question, index)))
            for question in first_at:
                slots.setdefault(question, failed(FailureReason.CANCELLED))
        return tuple(slots[question] for question in batch.questions)

    def _model_for(self, question: Question, recursive: bool | None) -> tuple[LanguageModel, SubCallChoice]:
        if self._plain is None or not self._sub.recursive:
            return self._sub, SubCallChoice.DEPTH
        if recursive is not None:
            return (self._sub if recursive else self._plain), SubCallChoice.CODE
        if not self._plain_chars:
            return self._sub, SubCallChoice.DEPTH
        attached = question.attachment
        size = len(question.prompt) + (len(attached.data) if attached else 0)
        # Bytes are no text that a plain model could read.
        small = size <= self._plain_chars and (attached is None or attached.kind is not ContextKind.BYTES)
        return (self._plain if small else self._sub), SubCallChoice.SIZE

    async def _ask(
        self,
        question: Question,
        index: int,
        batch_span: Span,
        model: LanguageModel,
        choice: SubCallChoice,
        deadline: Deadline | None,
    ) -> Slot:
        # A sub-call belongs to the depth below, plain ones too: cost by depth is read off the spans.
        span = batch_span.child(SpanKind.QUERY, depth=batch_span.depth + 1)
        span.emit(QueryStarted(index, question.prompt, model.recursive, choice))
        outcome, text, failure, error = Outcome.CANCELLED, None, None, ""
        try:
            text = await in_time(self._complete(question, span, model, deadline), deadline)
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

    async def _complete(self, question: Question, span: Span, model: LanguageModel, deadline: Deadline | None) -> str:
        async with self._prompt(question, model.recursive, deadline) as prompt:
            return (await model.completion(prompt, span)).text

    @asynccontextmanager
    async def _prompt(self, question: Question, recursive: bool, deadline: Deadline | None) -> AsyncIterator[Prompt]:
        """The question as a prompt; what had to be stored for it is dropped after the block."""
        query = question.prompt if question.prompt.strip() else CONTEXT_HOLDS_THE_TASK
        if question.attachment is not None:
            context = await self._contexts.put_attachment(question.attachment)
        elif recursive:
            # A recursive sub-call finds its prompt as `context`, where its code can work on it.
            context = await self._contexts.put(question.prompt)
            if len(query) > SHORT_PROMPT_CHARS:
                query = CONTEXT_HOLDS_THE_TASK
        else:
            yield Prompt(question.prompt, deadline=deadline)
            return
        try:
            yield Prompt(query, context, deadline)
        finally:
            try:
                await self._contexts.drop(context)
            except Exception:
                # The answer is there and paid for; the store's own sweep finds the file.
                logger.exception("a sub-call's context could not be removed")
