"""One sandbox, one transcript: the loop that does what `next_step` says, and nothing else.

A session outlives a query: asked again, it goes on with the same variables and what was said before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, assert_never

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
    TimeRanShort,
)
from orchestrator.rlm.batch import Questions
from orchestrator.rlm.deadline import TimeIsShort, before, done_by, now
from orchestrator.rlm.ended import ended
from orchestrator.rlm.failures import failed
from orchestrator.rlm.lease import SandboxLease
from orchestrator.rlm.prompts import PromptStyle
from orchestrator.rlm.steps import Ask, Finish, GiveUp, RunCell, next_step
from orchestrator.rlm.transcript import Transcript, fold, fold_reply
from orchestrator.seams import ChatModel, Sandbox, TextSink
from orchestrator.values import Batch, CellResult, Completion, Deadline, FailureReason, OutputChunk, Reply, Slot

_WORTH_ASKING_AGAIN: Final = 0.9  # of the length that was too much; less of a cut would only fail again


class CellQuestions:
    """What a sandbox calls when its code asks: the questions of the cell that runs, under that cell's span.

    Calls come from RPC handlers, which are nobody's children: so each is made a task of the cell's own, and a cell
    ends only when they have.
    """

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._cell: Span | None = None
        self._deadline: Deadline | None = None
        self._tasks: set[asyncio.Task[tuple[Slot, ...]]] = set()

    async def answer(self, batch: Batch) -> Sequence[Slot]:
        if self._cell is None:
            late = failed(FailureReason.INVALID, "a question can only be asked while a cell runs")
            return (late,) * len(batch.questions)
        task = asyncio.create_task(self._questions.answer(batch, self._cell, self._deadline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await task

    def begin(self, cell: Span, deadline: Deadline | None = None) -> None:
        """What this cell asks is answered by `deadline`, or not at all."""
        self._cell = cell
        self._deadline = deadline

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
    _wrap_up: Deadline | None = None  # of the query that is being answered
    _deadline: Deadline | None = None

    async def ask(self, start: RlmStarted, span: Span, deadline: Deadline | None = None) -> Completion:
        """Answers the query of `start`, which it emits on `span`.

        A while before `deadline` it gives up what it does, and asks for the best answer so far. To end it then, if
        even that takes too long, is the caller's.
        Raises `ModelFailed`, `SandboxUnavailable`, `SandboxLost`, `BudgetExceeded`.
        """
        self._deadline = deadline
        self._wrap_up = deadline.sooner(now()) if deadline is not None else None
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
        # The last question has all the time that is left.
        wrap_up = None if ask.last_resort else self._wrap_up
        try:
            with ended(iteration.emit, lambda outcome, _: IterationEnded(outcome)):
                reply = await before(self._reply(ask, iteration), wrap_up)
                self.memory.transcript = fold_reply(self._transcript, reply)
                while isinstance(step := next_step(self._transcript, self.style), RunCell):
                    if wrap_up is not None and now() >= wrap_up.at:
                        raise TimeIsShort
                    await self._run_cell(step.code, iteration, wrap_up)
                if isinstance(step, Ask) and not step.last_resort and wrap_up is not None and now() >= wrap_up.at:
                    raise TimeIsShort
        except TimeIsShort:
            left_s = self._deadline.at - now() if self._deadline is not None else 0.0
            self._tell(span, TimeRanShort(max(0.0, left_s)))
            again = next_step(self._transcript, self.style)
            assert not isinstance(again, RunCell), "no cell runs when time is short"
            return again
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

    async def _run_cell(self, code: str, iteration: Span, wrap_up: Deadline | None) -> None:
        cell = iteration.child(SpanKind.CELL)
        result: CellResult | None = None
        self._tell(cell, CellStarted(code))

        def on_output(chunk: OutputChunk) -> None:
            cell.emit(CellPrinted(chunk.stream, chunk.offset, chunk.text))

        def end(outcome: Outcome, error: str) -> CellEnded:
            return CellEnded(outcome, result, error)

        with ended(lambda event: self._tell(cell, event), end):
            sandbox = await before(self.sandbox.sandbox(), wrap_up)
            # Answers must be there a while before the cell is interrupted, or they are of no use to it.
            self.questions.begin(cell, wrap_up.sooner(now()) if wrap_up is not None else self._deadline)
            try:
                running = sandbox.run(code, on_output, time_limit_s=self.cell_timeout_s)
                result = await (running if wrap_up is None else _interrupted_at(wrap_up, sandbox, running))
            finally:
                await self.questions.end()
        if result.final is not None and result.final.length > len(result.final.text):
            cell.emit(
                NoticeGiven(
                    f"the final answer has {result.final.length:,} characters; it was cut to {len(result.final.text):,}"
                )
            )


async def _interrupted_at(wrap_up: Deadline, sandbox: Sandbox, running: Coroutine[Any, Any, CellResult]) -> CellResult:
    """The cell's result, which it has after an interrupt too: to cancel it would cost the sandbox, and its output."""
    task = asyncio.create_task(running)
    try:
        if not await done_by(task, wrap_up):
            await sandbox.interrupt()
        return await task
    finally:
        if not task.done():  # the caller has stopped
            task.cancel()
            await asyncio.wait({task})


def _length(ask: Ask) -> int:
    return sum(len(message.content) for message in ask.messages)
