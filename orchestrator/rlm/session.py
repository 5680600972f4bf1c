"""One sandbox, one transcript: the loop that does what `next_step` says, and nothing else.

A session outlives a query: asked again, it goes on with the same variables and what was said before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, assert_never

from orchestrator.errors import ModelFailed, ModelFailure
from orchestrator.events import (
    CellEnded,
    CellPrinted,
    CellStarted,
    Event,
    IterationEnded,
    IterationStarted,
    ModelTextStreamed,
    NoticeGiven,
    Outcome,
    RlmStarted,
    Span,
    SpanKind,
)
from orchestrator.rlm.batch import Questions
from orchestrator.rlm.ended import ended
from orchestrator.rlm.failures import failed
from orchestrator.rlm.lease import SandboxLease
from orchestrator.rlm.prompts import PromptStyle
from orchestrator.rlm.steps import Ask, Finish, GiveUp, RunCell, next_step
from orchestrator.rlm.transcript import Transcript, fold, fold_reply
from orchestrator.seams import ChatModel, TextSink
from orchestrator.values import Batch, CellResult, Completion, FailureReason, OutputChunk, Reply, Slot

_WORTH_ASKING_AGAIN: Final = 0.9  # of the length that was too much; less of a cut would only fail again


class CellQuestions:
    """What a sandbox calls when its code asks: the questions of the cell that runs, under that cell's span.

    Calls come from RPC handlers, which are nobody's children: so each is made a task of the cell's own, and a cell
    ends only when they have.
    """

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._cell: Span | None = None
        self._tasks: set[asyncio.Task[tuple[Slot, ...]]] = set()

    async def answer(self, batch: Batch) -> Sequence[Slot]:
        if self._cell is None:
            late = failed(FailureReason.INVALID, "a question can only be asked while a cell runs")
            return (late,) * len(batch.questions)
        task = asyncio.create_task(self._questions.answer(batch, self._cell))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await task

    def begin(self, cell: Span) -> None:
        self._cell = cell

    async def end(self) -> None:
        """Nobody pays for an answer that nobody reads: what is still in flight is cancelled, and awaited."""
        self._cell = None
        left = set(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)


@dataclass(slots=True)
class Memory:
    """What one query leaves to the next in the same sandbox."""

    transcript: Transcript | None = None


@dataclass(slots=True)
class Session:
    chat: ChatModel
    sandbox: SandboxLease
    questions: CellQuestions
    style: PromptStyle
    cell_timeout_s: float | None
    memory: Memory = field(default_factory=Memory)

    async def ask(self, start: RlmStarted, span: Span) -> Completion:
        """Answers the query of `start`, which it emits on `span`.

        Raises `ModelFailed`, `SandboxUnavailable`, `SandboxLost`, `BudgetExceeded`.
        """
        self._tell(span, start)
        step: Ask | Finish | GiveUp | RunCell = next_step(self._transcript, self.style)
        while True:
            match step:
                case Ask():
                    step = await self._iterate(step, span)
                case Finish(answer, ending):
                    return Completion(answer, ending)
                case GiveUp(kind, reason):
                    raise ModelFailed(kind, start.model, reason)
                case RunCell():
                    raise AssertionError("a cell runs only within an iteration")
                case unreachable:
                    assert_never(unreachable)

    @property
    def _transcript(self) -> Transcript:
        if self.memory.transcript is None:
            raise AssertionError("the transcript begins with RlmStarted")
        return self.memory.transcript

    def _tell(self, span: Span, event: Event) -> None:
        span.emit(event)
        self.memory.transcript = fold(self.memory.transcript, event)

    async def _iterate(self, ask: Ask, span: Span) -> Ask | Finish | GiveUp:
        iteration = span.child(SpanKind.ITERATION)
        number, of = len(self._transcript.turns) + 1, self._transcript.start.max_iterations
        self._tell(iteration, IterationStarted(number, of, ask.last_resort))
        with ended(iteration.emit, lambda outcome, _: IterationEnded(outcome)):
            reply = await self._reply(ask, iteration)
            self.memory.transcript = fold_reply(self._transcript, reply)
            while isinstance(step := next_step(self._transcript, self.style), RunCell):
                await self._run_cell(step.code, iteration)
        return step

    async def _reply(self, ask: Ask, iteration: Span) -> Reply:
        def stream(text: str) -> None:
            iteration.emit(ModelTextStreamed(text))

        on_text: TextSink | None = stream if iteration.depth == 0 else None
        messages = ask.messages
        while True:
            try:
                return await self.sandbox.meanwhile(partial(self.chat.chat, messages, iteration, on_text))
            except ModelFailed as failure:
                shorter = self._shortened(ask)
                if failure.kind is not ModelFailure.TOO_LONG or shorter is None:
                    raise
                iteration.emit(NoticeGiven("the conversation is too long for the model: asking again with less of it"))
                ask, messages = shorter, shorter.messages

    def _shortened(self, ask: Ask) -> Ask | None:
        """The same question with less of the history, from now on; None when there is nothing to leave out."""
        style = self.style
        while (tighter := style.tightened()) is not None:
            style = tighter
            shorter = next_step(self._transcript, style)
            if isinstance(shorter, Ask) and _length(shorter) <= _length(ask) * _WORTH_ASKING_AGAIN:
                self.style = style
                return shorter
        return None

    async def _run_cell(self, code: str, iteration: Span) -> None:
        cell = iteration.child(SpanKind.CELL)
        result: CellResult | None = None
        self._tell(cell, CellStarted(code))

        def on_output(chunk: OutputChunk) -> None:
            cell.emit(CellPrinted(chunk.stream, chunk.offset, chunk.text))

        def end(outcome: Outcome, error: str) -> CellEnded:
            return CellEnded(outcome, result, error)

        with ended(lambda event: self._tell(cell, event), end):
            sandbox = await self.sandbox.sandbox()
            self.questions.begin(cell)
            try:
                result = await sandbox.run(code, on_output, time_limit_s=self.cell_timeout_s)
            finally:
                await self.questions.end()
        if result.final is not None and result.final.length > len(result.final.text):
            cell.emit(
                NoticeGiven(
                    f"the final answer has {result.final.length:,} characters; it was cut to {len(result.final.text):,}"
                )
            )


def _length(ask: Ask) -> int:
    return sum(len(message.content) for message in ask.messages)
