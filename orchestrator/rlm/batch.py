"""The one way in which a cell's questions are answered: `llm_query` is a batch of one.

One failure never fails the batch: its slot says so. Only cancellation passes through.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import BudgetExceeded, ModelFailed, ModelFailure, RLMError
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
# A model sees it as it is: no window is that large, and an event with it must fit into a message.
MAX_PROMPT_CHARS: Final = 8 * 1024 * 1024
MAX_ANSWER_CHARS: Final = 8 * 1024 * 1024
# Of a prompt in the record: the whole of it is in the event of the model call, or in the sub-call's context.
_SHOWN_HEAD, _SHOWN_TAIL = 8_000, 2_000
# So many questions begin in one turn of the loop: each is some events, and the sinks of those.
_AT_A_TURN: Final = 16


def _no_refusal() -> BudgetExceeded | None:
    return None


class Questions:
    """Answers batches with one language model, plain or recursive without the asking code knowing.

    `plain` stands in for a recursive `sub` where the code asks for that, and for questions of at most `plain_chars`
    characters, their data included, unless the code insists. `used_up` says what of the budget allows nothing more at
    all; what is asked then is not even written down.
    """

    def __init__(
        self,
        sub: LanguageModel,
        contexts: ContextStore,
        plain: LanguageModel | None = None,
        plain_chars: int = 0,
        used_up: Callable[[], BudgetExceeded | None] = _no_refusal,
    ) -> None:
        self._sub = sub
        self._contexts = contexts
        self._plain = plain
        self._plain_chars = plain_chars
        self._used_up = used_up

    async def answer(self, batch: Batch, span: Span, deadline: Deadline | None = None) -> tuple[Slot, ...]:
        """A slot for each question, in their order; equal questions are asked once and answered everywhere.

        At most `batch.max_concurrent` are asked at a time, and none that is not answered by `deadline`. When the budget
        allows nothing more, the first question that it refuses is the last that is asked, and all others fail as it
        did. `span` is the cell's. Raises nothing but `asyncio.CancelledError`, which stops all that is in flight and
        waits for it.
        """
        if batch.max_concurrent < 1:
            refused = failed(FailureReason.INVALID, "max_concurrent must be at least 1")
            return (refused,) * len(batch.questions)
        if not batch.questions:
            return ()
        first_at: dict[Question, int] = {}
        for index, question in enumerate(batch.questions):
            first_at.setdefault(question, index)
        batch_span = span.child(SpanKind.BATCH)
        batch_span.emit(BatchStarted(len(batch.questions), len(first_at), batch.max_concurrent))

        def ask(question: Question, index: int) -> Coroutine[None, None, Slot | _Hopeless]:
            model, choice = self._model_for(question, batch.recursive)
            return self._ask(question, index, batch_span, model, choice, deadline)

        asking = _Asking(ask, batch.stop_at_failure)

        def end(outcome: Outcome, error: str) -> BatchEnded:
            found = [asking.slots.get(question) for question in batch.questions]
            return BatchEnded(outcome, sum(isinstance(slot, Failed) for slot in found), asking.unasked)

        with ended(batch_span.emit, end):
            await asking.all(first_at, batch.max_concurrent)
        return tuple(asking.slots[question] for question in batch.questions)

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
    ) -> Slot | _Hopeless:
        # A sub-call belongs to the depth below, plain ones too: cost by depth is read off the spans.
        span = batch_span.child(SpanKind.QUERY, depth=batch_span.depth + 1)
        span.emit(QueryStarted(index, _shown(question.prompt), model.recursive, choice))
        outcome, text, failure, error = Outcome.CANCELLED, None, None, ""
        try:
            text = _cut(await in_time(self._complete(question, span, model, deadline), deadline))
            outcome = Outcome.OK
            return Answered(text)
        except Exception as reason:
            if not isinstance(reason, RLMError):
                logger.exception("a sub-call failed in an unforeseen way")
            slot = as_slot(reason)
            outcome, failure, error = Outcome.FAILED, slot.reason, str(reason) or type(reason).__name__
            return _Hopeless(slot) if _is_hopeless(reason) else slot
        finally:
            span.emit(QueryEnded(outcome, text, failure, error))

    async def _complete(self, question: Question, span: Span, model: LanguageModel, deadline: Deadline | None) -> str:
        # Before the question is written to disk: refusing must cost less than asking does.
        if (refusal := self._used_up()) is not None:
            raise refusal
        as_it_is = question.attachment is not None or not model.recursive
        if as_it_is and len(question.prompt) > MAX_PROMPT_CHARS:
            raise ModelFailed(
                ModelFailure.TOO_LONG,
                "sub-call",
                f"a prompt has {len(question.prompt):,} characters, and may have {MAX_PROMPT_CHARS:,}",
            )
        if question.attachment is None and not model.recursive:
            return (await model.completion(Prompt(question.prompt, deadline=deadline), span)).text
        async with self._stored(question, deadline) as prompt:
            return (await model.completion(prompt, span)).text

    @asynccontextmanager
    async def _stored(self, question: Question, deadline: Deadline | None) -> AsyncIterator[Prompt]:
        """The question as a prompt with a context, which is dropped after the block."""
        query = question.prompt if question.prompt.strip() else CONTEXT_HOLDS_THE_TASK
        if question.attachment is not None:
            context = await self._contexts.put_attachment(question.attachment)
        else:
            # A recursive sub-call finds its prompt as `context`, where its code can work on it.
            context = await self._contexts.put(question.prompt)
            if len(query) > SHORT_PROMPT_CHARS:
                query = CONTEXT_HOLDS_THE_TASK
        try:
            yield Prompt(query, context, deadline)
        finally:
            try:
                await self._contexts.drop(context)
            except Exception:
                # The answer is there and paid for; the store's own sweep finds the file.
                logger.exception("a sub-call's context could not be removed")


@dataclass(frozen=True, slots=True)
class _Hopeless:
    """A refusal that holds for every other question, too."""

    slot: Failed


class _Asking:
    """One batch on its way."""

    def __init__(
        self, ask: Callable[[Question, int], Coroutine[None, None, Slot | _Hopeless]], stop_at_failure: bool
    ) -> None:
        self._ask = ask
        self._stop_at_failure = stop_at_failure
        self._rest: Failed | None = None  # what becomes of all that has no slot yet
        self._tasks: set[asyncio.Task[None]] = set()
        self.slots: dict[Question, Slot] = {}
        self.unasked = 0

    async def all(self, questions: Mapping[Question, int], max_concurrent: int) -> None:
        if len(questions) == 1:  # llm_query: no task, and nobody to give a turn to
            [(question, index)] = questions.items()
            await self._one(question, index)
            return
        turns, unasked = _Turns(), iter(questions.items())

        async def one_after_another(question: Question, index: int) -> None:
            # Who has an answer asks the next at once: a task for each leaves its place empty for two turns of the loop.
            while self._rest is None:
                await self._one(question, index)
                if (following := next(unasked, None)) is None:
                    return
                question, index = following
                await turns.one_more()

        # No `yield` in this group, and its tasks raise nothing: no ExceptionGroup can come out of it.
        async with asyncio.TaskGroup() as group:
            for count, (question, index) in zip(range(max_concurrent), unasked, strict=False):
                await turns.one_more()
                if count == 1:  # the first is heard of before others begin: it may speak for all
                    await asyncio.sleep(0)
                if self._rest is not None:
                    break
                self._tasks.add(group.create_task(one_after_another(question, index)))
        if self._rest is not None:
            rest = self._rest
            without = [question for question in questions if question not in self.slots]
            self.slots.update(dict.fromkeys(without, rest))
            self.unasked = len(without) if rest.reason is FailureReason.BUDGET else 0

    async def _one(self, question: Question, index: int) -> None:
        match await self._ask(question, index):
            case _Hopeless(slot):
                self.slots[question] = slot
                self._rest = self._rest or slot
            case slot:
                self.slots[question] = slot
        if self._stop_at_failure and isinstance(slot, Failed):
            self._rest = failed(FailureReason.CANCELLED)
            for task in self._tasks - {asyncio.current_task()}:
                task.cancel()


class _Turns:
    """Lets few questions begin in one turn of the loop, so that others have theirs. First come, first served."""

    def __init__(self) -> None:
        self._begun = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def one_more(self) -> None:
        loop = asyncio.get_running_loop()
        if self._begun >= _AT_A_TURN:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn  # whoever lets it go on has counted it
            return
        if not self._begun:
            loop.call_soon(self._next)
        self._begun += 1

    def _next(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < _AT_A_TURN:
            turn = self._waiting.popleft()
            if not turn.done():  # it may have been cancelled
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next)


def _is_hopeless(reason: Exception) -> bool:
    """Whether no other question could be asked either.

    A smaller one may fit into what is left; an RLM may answer without the sandbox that it cannot have.
    """
    if not isinstance(reason, BudgetExceeded) or reason.limit == "max_sandboxes":
        return False
    return reason.used >= reason.allowed or math.isinf(reason.wanted)


def _shown(prompt: str) -> str:
    if len(prompt) <= _SHOWN_HEAD + _SHOWN_TAIL:
        return prompt
    left_out = len(prompt) - _SHOWN_HEAD - _SHOWN_TAIL
    note = f"[... {left_out:,} of {len(prompt):,} characters left out ...]"
    return f"{prompt[:_SHOWN_HEAD]}\n{note}\n{prompt[-_SHOWN_TAIL:]}"


def _cut(answer: str) -> str:
    if len(answer) <= MAX_ANSWER_CHARS:
        return answer
    return f"{answer[:MAX_ANSWER_CHARS]}\n[... cut: the answer has {len(answer):,} characters ...]"
