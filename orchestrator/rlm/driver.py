"""`RLM`: a language model that answers by writing code (Recursive Language Models, arXiv 2512.24601)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from orchestrator.errors import BudgetExceeded, InvalidInput
from orchestrator.events import Outcome, RlmEnded, RlmStarted, Span, SpanKind
from orchestrator.rlm.batch import Questions
from orchestrator.rlm.ended import ended
from orchestrator.rlm.lease import lease
from orchestrator.rlm.prompts import PromptStyle
from orchestrator.rlm.session import CellQuestions, Memory, Session
from orchestrator.seams import ChatModel, ContextStore, LanguageModel, SandboxFactory
from orchestrator.values import Completion, Context, Prompt


class RLM:
    """Implements `seams.LanguageModel` out of a chat model, a sub-model and sandboxes.

    `depth` is its own, 0 the root's; it has a REPL because `depth < max_depth`. `max_iterations` is its own number too:
    see `iterations_at`. `sub` answers the questions of its code, `plain` those that need no REPL: see `Questions`, for
    `plain_chars` too. `cell_timeout_s` None is the sandboxes' own limit.
    `instructions` are the user's own for this depth, added to the system prompt. With a `memory`, each completion goes
    on from the one before, and `sandboxes` must give the same sandbox to each; without one, each begins anew.
    `used_up` is what `Questions` takes.

    Raises `InvalidInput` for numbers that break these rules.
    """

    def __init__(
        self,
        chat: ChatModel,
        sub: LanguageModel,
        sandboxes: SandboxFactory,
        contexts: ContextStore,
        *,
        depth: int,
        max_depth: int,
        max_iterations: int,
        cell_timeout_s: float | None = None,
        instructions: str = "",
        style: PromptStyle | None = None,
        memory: Memory | None = None,
        plain: LanguageModel | None = None,
        plain_chars: int = 0,
        used_up: Callable[[], BudgetExceeded | None] = lambda: None,
    ) -> None:
        if not 0 <= depth < max_depth:
            raise InvalidInput("depth", f"must be from 0 to below max_depth ({max_depth}); it is {depth}.")
        if max_iterations < 1:
            raise InvalidInput("max_iterations", f"must be at least 1; it is {max_iterations}.")
        self._chat = chat
        self._sandboxes = sandboxes
        self._questions = Questions(sub, contexts, plain, plain_chars, used_up)
        self._depth = depth
        self._max_depth = max_depth
        self._max_iterations = max_iterations
        self._cell_timeout_s = cell_timeout_s
        self._memory = memory
        style = style or PromptStyle()
        self._style = replace(
            style,
            instructions=instructions or style.instructions,
            plain_calls=plain is not None,
            plain_chars=plain_chars,
        )

    @property
    def recursive(self) -> bool:
        return True

    async def completion(self, prompt: Prompt, span: Span) -> Completion:
        """Answers the query from the context, in a fresh sandbox. `span` is the run's, or the asking query's.

        Raises `ModelFailed`, `SandboxUnavailable`, `SandboxLost`, `BudgetExceeded`, `DeadlineExceeded`.
        """
        rlm_span = span.child(SpanKind.RLM, depth=self._depth)
        completion: Completion | None = None

        def end(outcome: Outcome, error: str) -> RlmEnded:
            if completion is None or outcome is not Outcome.OK:
                return RlmEnded(outcome, None, None, error)
            return RlmEnded(outcome, completion.text, completion.ending)

        with ended(rlm_span.emit, end):
            async with self.session(prompt.context, rlm_span) as session:
                completion = await session.ask(self.start(prompt), rlm_span, prompt.deadline)
        return completion

    def start(self, prompt: Prompt) -> RlmStarted:
        """The facts that a transcript for this prompt begins with."""
        return RlmStarted(
            query=prompt.query,
            context=prompt.context.info if prompt.context is not None else None,
            depth=self._depth,
            max_depth=self._max_depth,
            max_iterations=self._max_iterations,
            model=self._chat.name,
        )

    @asynccontextmanager
    async def session(self, context: Context | None, span: Span) -> AsyncIterator[Session]:
        """A sandbox with `context` in it, to ask one or more queries of. The sandbox's span is a child of `span`."""
        questions = CellQuestions(self._questions)
        height = self._max_depth - 1 - self._depth
        opening = self._sandboxes.open(context, questions.answer, height=height)
        async with lease(opening, span.child(SpanKind.SANDBOX)) as sandbox:
            memory = self._memory if self._memory is not None else Memory()
            yield Session(self._chat, sandbox, questions, self._style, self._cell_timeout_s, memory)
