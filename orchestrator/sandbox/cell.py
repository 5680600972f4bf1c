"""One cell while it runs, as the host sees it: its output, its questions, its clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from orchestrator.sandbox.output import OutputFold
from orchestrator.sandbox.wire import CellEnded, Output
from orchestrator.seams import OutputSink
from orchestrator.tasks import TaskSet
from orchestrator.values import CellResult, OutputStream, Slot

logger = logging.getLogger(__name__)


class RunningCell:
    """Ends by a result or an exception, once. Its clock stops while at least one question is out."""

    def __init__(self, number: int, head_bytes: int, tail_bytes: int, on_output: OutputSink | None) -> None:
        self.number = number
        self._folds = {stream: OutputFold(stream, head_bytes, tail_bytes) for stream in OutputStream}
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[CellResult] = self._loop.create_future()
        self._questions = TaskSet()
        self._changed = asyncio.Event()
        self._started = self._loop.time()
        self._waited = 0.0
        self._waiting_since: float | None = None

    @property
    def questions_out(self) -> int:
        return len(self._questions)

    def wrote(self, output: Output) -> None:
        """Raises `OutputOverrun`."""
        chunk = self._folds[output.stream].add(output.offset, output.data)
        if chunk is None or self._on_output is None:
            return
        try:
            self._on_output(chunk)
        except Exception:
            # A viewer's fault is not the cell's.
            self._on_output = None
            logger.exception("the sink for a cell's output raised and is dropped")

    def ended(self, message: CellEnded) -> None:
        self._finish()
        if not self._result.done():
            stdout = self._folds[OutputStream.STDOUT].finish(message.stdout_bytes)
            stderr = self._folds[OutputStream.STDERR].finish(message.stderr_bytes)
            self._result.set_result(msgspec.structs.replace(message.result, stdout=stdout, stderr=stderr))

    def fail(self, error: BaseException) -> None:
        self._finish()
        if not self._result.done():
            self._result.set_exception(error)

    def ask(self, question: Coroutine[Any, Any, Sequence[Slot]]) -> asyncio.Task[Sequence[Slot]]:
        """Starts to answer; cancelled when the cell ends."""
        if not len(self._questions):
            self._waiting_since = self._loop.time()
        task = self._questions.spawn(question, f"answer for cell {self.number}")
        task.add_done_callback(self._answered)
        self._changed.set()
        return task

    async def wait(self, limit_s: float) -> CellResult:
        """The result. Raises `TimeoutError` when the cell has run for so long, waiting for answers not counted."""
        while not self._result.done():
            left = None if len(self._questions) else limit_s - self._running_s()
            if left is not None and left <= 0:
                raise TimeoutError
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return self._result.result()

    async def close(self) -> None:
        """Cancels what is still being answered, and waits until it is."""
        await self._questions.close()
        if self._result.done() and not self._result.cancelled():
            self._result.exception()  # seen: nobody may be left to ask for it

    def _finish(self) -> None:
        self._questions.cancel()
        self._changed.set()

    def _answered(self, _: asyncio.Task[Sequence[Slot]]) -> None:
        if not len(self._questions) and self._waiting_since is not None:
            self._waited += self._loop.time() - self._waiting_since
            self._waiting_since = None
        self._changed.set()

    def _running_s(self) -> float:
        return self._loop.time() - self._started - self._waited
