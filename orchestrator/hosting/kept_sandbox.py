"""One sandbox that is kept for its caller: its cells, one at a time, and the questions that they ask."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack

from orchestrator.budget import Budget
from orchestrator.errors import Busy
from orchestrator.events import (
    CellEnded,
    CellPrinted,
    CellStarted,
    Outcome,
    SandboxEnded,
    SandboxStarted,
    Span,
    SpanKind,
)
from orchestrator.hosting.clock import Alarm
from orchestrator.rlm.ended import ended
from orchestrator.rlm.session import CellQuestions
from orchestrator.seams import Sandbox
from orchestrator.store.rows import Total
from orchestrator.values import CellResult, OutputChunk
from orchestrator.views import SandboxView


class KeptSandbox:
    """`stack` holds all that it uses, and is closed with it. `questions` None: no model."""

    def __init__(
        self,
        identifier: str,
        number: int,
        principal: str,
        labels: Mapping[str, str],
        idle_s: float,
        created_at: float,
        span: Span,
        budget: Budget,
        questions: CellQuestions | None,
    ) -> None:
        self.id = identifier
        self.number = number
        self.principal = principal
        self.labels = dict(labels)
        self.idle_s = idle_s
        self.created_at = created_at
        self.budget = budget
        self.stack = AsyncExitStack()
        self.busy = True
        self.cells = 0
        self.expires_at: float | None = None
        self.alarm: Alarm | None = None
        self.life: Alarm | None = None
        self.ends_at = math.inf
        self.loss = ""
        self.counted = Total()  # of what it has used: on record
        self._sandbox: Sandbox | None = None
        self._span = span
        self._own_span = span.child(SpanKind.SANDBOX)
        self._questions = questions

    @property
    def sandbox(self) -> Sandbox:
        if self._sandbox is None:
            raise Busy(f"the sandbox {self.id} is not open yet.")
        return self._sandbox

    def opened(self, sandbox: Sandbox, at: float) -> None:
        self._sandbox = sandbox
        self._own_span.emit(SandboxStarted(sandbox.name, max(0.0, at - self.created_at), sandbox.warm))

    def closed(self) -> None:
        if self._sandbox is not None:
            outcome = Outcome.FAILED if self.loss else Outcome.OK
            self._own_span.emit(SandboxEnded(self._sandbox.name, outcome, self.loss))

    def view(self) -> SandboxView:
        return SandboxView(
            sandbox_id=self.id,
            busy=self.busy,
            created_at=self.created_at,
            expires_at=self.expires_at,
            cells=self.cells,
            spent=self.budget.spent,
            labels=self.labels,
        )

    async def run(self, code: str, time_limit_s: float | None, printed: asyncio.Queue[OutputChunk]) -> CellResult:
        """Raises `SandboxLost`."""
        self.cells += 1
        cell = self._span.child(SpanKind.CELL)
        result: CellResult | None = None

        def on_output(chunk: OutputChunk) -> None:
            printed.put_nowait(chunk)
            cell.emit(CellPrinted(chunk.stream, chunk.offset, chunk.text))

        cell.emit(CellStarted(code))
        with ended(cell.emit, lambda outcome, error: CellEnded(outcome, result, error)):
            if self._questions is not None:
                self._questions.begin(cell)
            try:
                result = await self.sandbox.run(code, on_output, time_limit_s=time_limit_s)
            finally:
                if self._questions is not None:
                    await self._questions.end()
        return result


async def cell_items(
    cell: asyncio.Task[CellResult], printed: asyncio.Queue[OutputChunk], interrupt: Callable[[], None]
) -> AsyncGenerator[OutputChunk | CellResult, None]:
    """Output as it comes, the result last. Left early, the cell is interrupted, and goes on to its end by itself."""
    try:
        while True:
            getting = asyncio.ensure_future(printed.get())
            try:
                await asyncio.wait({getting, cell}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not getting.done():
                    getting.cancel()
            if getting.done() and not getting.cancelled():
                yield getting.result()
            elif cell.done():
                break
        while not printed.empty():
            yield printed.get_nowait()
        yield cell.result()
    finally:
        if not cell.done():
            interrupt()
