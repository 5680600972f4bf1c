"""One cell while it runs, as the host sees it: its output, its questions, its clock."""

from __future__ import annotations

import asyncio
import logging
import math

import msgspec

from orchestrator.errors import InvalidInput
from orchestrator.sandbox.asks import CellAsks
from orchestrator.sandbox.output import OutputFold
from orchestrator.sandbox.wire import CellEnded, Output
from orchestrator.seams import OutputSink
from orchestrator.values import CellResult, OutputStream

logger = logging.getLogger(__name__)

_SECOND_LOOK_S = 1.0


def check_time_limit(time_limit_s: float | None) -> None:
    """Raises `InvalidInput` for a limit that is none: what each end makes of such a number may differ."""
    if time_limit_s is not None and not 0 < time_limit_s < math.inf:
        raise InvalidInput(
            "time_limit_s", f"must be more than 0 s; it is {time_limit_s:g} s.", "Leave it out for the default."
        )


class RunningCell:
    """Ends by a result or an exception, once. Its clock stops while at least one question is out."""

    def __init__(self, number: int, head_bytes: int, tail_bytes: int, on_output: OutputSink | None) -> None:
        self.number = number
        self._folds = {stream: OutputFold(stream, head_bytes, tail_bytes) for stream in OutputStream}
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[CellResult] = self._loop.create_future()
        self._started = self._loop.time()
        self.asks = CellAsks(number)

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
        # A guest that says otherwise would spoil every sum of running times.
        seconds = min(message.result.seconds, self._loop.time() - self._started)
        self.asks.end()
        if not self._result.done():
            stdout = self._folds[OutputStream.STDOUT].finish(message.stdout_bytes)
            stderr = self._folds[OutputStream.STDERR].finish(message.stderr_bytes)
            self._result.set_result(
                msgspec.structs.replace(message.result, stdout=stdout, stderr=stderr, seconds=seconds)
            )

    def fail(self, error: BaseException) -> None:
        self.asks.end()
        if not self._result.done():
            self._result.set_exception(error)

    async def wait(self, limit_s: float) -> CellResult:
        """The result. Raises `TimeoutError` when the cell has run for so long, waiting for answers not counted."""
        asks, suspected = self.asks, False
        while not self._result.done():
            left = None if asks.answering else limit_s - self._running_s()
            if left is not None and left <= 0:
                if suspected:
                    raise TimeoutError
                # A process that was itself held up, or stopped, reads what has come before it judges.
                suspected, left = True, min(_SECOND_LOOK_S, limit_s)
            asks.changed.clear()
            try:
                async with asyncio.timeout(left):
                    await asks.changed.wait()
            except TimeoutError:
                continue
        return self._result.result()

    async def close(self) -> None:
        """Cancels what is still being answered, and waits until it is."""
        await self.asks.close()
        if self._result.done() and not self._result.cancelled():
            self._result.exception()  # seen: nobody may be left to ask for it

    def _running_s(self) -> float:
        return self._loop.time() - self._started - self.asks.excused_s
