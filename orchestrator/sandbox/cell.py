"""One cell while it runs, as the host sees it: its output, its questions, its clock."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from functools import partial

from orchestrator.errors import InvalidInput
from orchestrator.sandbox.alarm import Alarm
from orchestrator.sandbox.asks import AskCall, AskCancelled, AskRefused, CellAsks
from orchestrator.sandbox.output import OutputFold
from orchestrator.sandbox.waits import Waits
from orchestrator.sandbox.wire import CellEnded, Output
from orchestrator.seams import Answer, OutputSink
from orchestrator.values import Batch, Captured, CellResult, OutputStream, Slot

logger = logging.getLogger(__name__)

_NOTHING = Captured()

_SECOND_LOOK_S = 1.0
_LOOK_S = 0.5  # at least so much between two looks at a cell that waits for an answer


class OutOfTime(Exception):
    """The cell has run for longer than its guest may let it."""


def check_time_limit(time_limit_s: float | None) -> None:
    """Raises `InvalidInput` for a limit that is none: what each end makes of such a number may differ."""
    if time_limit_s is not None and not 0 < time_limit_s < math.inf:
        raise InvalidInput(
            "time_limit_s", f"must be more than 0 s; it is {time_limit_s:g} s.", "Leave it out for the default."
        )


class RunningCell:
    """Ends by a result or an exception, once. Its clock stops while at least one question is out.

    `alarm` is its own while it runs. Without `answer`, none of its questions may come to `ask`.
    """

    def __init__(
        self,
        number: int,
        head_bytes: int,
        tail_bytes: int,
        on_output: OutputSink | None,
        answer: Answer | None,
        limit_s: float,
        alarm: Alarm,
    ) -> None:
        """`limit_s`: of running time, which the guest keeps. What code can bring about is excused for as long again."""
        self.number = number
        self._answer = answer
        self._caps = head_bytes, tail_bytes
        self._folds: dict[OutputStream, OutputFold] = {}  # of those that something was written to
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[CellResult] = self._loop.create_future()
        self._started = self._loop.time()
        self._alarm = alarm
        self.waits = Waits(limit_s)
        self.asks = CellAsks(self.waits)

    def wrote(self, output: Output) -> None:
        """Raises `OutputOverrun`."""
        chunk = self._fold(output.stream).add(output.offset, output.data)
        if chunk is None or self._on_output is None:
            return
        try:
            self._on_output(chunk)
        except Exception:
            # A viewer's fault is not the cell's.
            self._on_output = None
            logger.exception("the sink for a cell's output raised and is dropped")

    def ended(self, message: CellEnded) -> None:
        self.asks.end()
        if not self._result.done():
            stdout = self._captured(OutputStream.STDOUT, message.stdout_bytes)
            stderr = self._captured(OutputStream.STDERR, message.stderr_bytes)
            # A guest that says otherwise would spoil every sum of running times.
            seconds = min(message.seconds, self._loop.time() - self._started) - self.waits.waited_s
            self._result.set_result(message.result(stdout, stderr, max(0.0, seconds)))

    def paused_for(self, seconds: float) -> None:
        """Nothing of the guest is read for so long, which may be a question that waits."""
        self.waits.begin_pause()
        self._loop.call_later(seconds, self.waits.end_pause)

    async def ask(self, call: AskCall, batch: Batch, size: int) -> Sequence[Slot]:
        """The answer to a question of `size` bytes. Raises `AskRefused`."""
        assert self._answer is not None
        if self.asks.over:
            raise AskCancelled("the cell has ended")
        call.takes(size)
        try:
            slots = await self.asks.answer(self._answer(batch), call, size)
            if len(slots) != len(batch.questions):
                raise RuntimeError(f"{len(slots)} answers to {len(batch.questions)} questions")
        except (AskRefused, asyncio.CancelledError):
            raise
        except BaseException as error:
            # The caller's failure, not the code's: it comes out of `run`, and the guest learns nothing of it.
            if not call.given_up:
                self.fail(error)
            if not isinstance(error, Exception):
                raise
            raise AskCancelled("the run has ended") from None
        return slots

    def fail(self, error: BaseException) -> None:
        self.asks.end()
        if not self._result.done():
            self._result.set_exception(error)

    async def wait(self, limit_s: float) -> CellResult:
        """The result. Raises `OutOfTime` when the cell has run for so long, waiting for answers not counted."""
        self._alarm.set(limit_s, partial(self._look, limit_s, False))
        try:
            return await self._result
        finally:
            self._alarm.clear()

    def _look(self, limit_s: float, suspected: bool) -> None:
        left_s = limit_s - self._running_s()
        if self.asks.answering:
            left_s, suspected = max(left_s, _LOOK_S), False
        elif left_s <= 0:
            if suspected:
                self.fail(OutOfTime())
                return
            # A process that was itself held up, or stopped, reads what has come before it judges.
            left_s, suspected = min(_SECOND_LOOK_S, limit_s), True
        self._alarm.set(left_s, partial(self._look, limit_s, suspected))

    async def close(self) -> None:
        """Cancels what is still being answered, and waits until it is."""
        if not self.asks.over or self.asks.answering:
            await self.asks.close()
        if self._result.done() and not self._result.cancelled():
            self._result.exception()  # seen: nobody may be left to ask for it

    def _fold(self, stream: OutputStream) -> OutputFold:
        fold = self._folds.get(stream)
        if fold is None:
            fold = self._folds[stream] = OutputFold(stream, *self._caps, live=self._on_output is not None)
        return fold

    def _captured(self, stream: OutputStream, total_bytes: int) -> Captured:
        if not total_bytes and stream not in self._folds:
            return _NOTHING
        return self._fold(stream).finish(total_bytes)

    def _running_s(self) -> float:
        return self._loop.time() - self._started - self.waits.excused_s
