"""A root's sandbox and its conversation, kept from one run to the next: asked again, it knows what it did before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from orchestrator.errors import Busy, InvalidInput, SandboxLost
from orchestrator.held import Held
from orchestrator.rlm.session import Memory
from orchestrator.rlm.transcript import Transcript
from orchestrator.seams import Answer, Sandbox, SandboxFactory
from orchestrator.values import Batch, Context, Slot

# What the code finds in its namespace from the beginning; see the guest's documentation.
_QUERIES = ("llm_query", "llm_batch", "llm_query_batched", "rlm_query", "rlm_query_batched", "failed")
_ANSWERS = ("FINAL", "FINAL_VAR", "SHOW_VARS", "answer", "load_context", "SubcallError", "SubcallFailed")
_SCAFFOLD = frozenset(("context", *_QUERIES, *_ANSWERS))


class RunSession:
    """Implements `SandboxFactory` for the root's RLM of each of its runs, one after the other.

    The sandbox is opened by the first run that asks, and lent to each. `height` is what is reserved beneath it at
    least: a sandbox that is kept must not take the room in which others could finish. Ended by `close`.
    """

    def __init__(self, sandboxes: SandboxFactory, height: int) -> None:
        self._sandboxes = sandboxes
        self._height = height
        self._held: Held[Sandbox] | None = None
        self._answer: Answer | None = None
        self._added: dict[str, Context] = {}
        self._untold: list[str] = []
        self.memory = Memory()

    @property
    def opened(self) -> bool:
        """Whether there is a sandbox: without one there is nothing to go on with."""
        return self._held is not None

    @asynccontextmanager
    async def open(self, context: Context | None, answer: Answer | None, *, height: int = 0) -> AsyncIterator[Sandbox]:
        """See `SandboxFactory.open`; the sandbox stays after the block. `context` counts the first time only."""
        if self._held is None:
            opening = self._sandboxes.open(context, self._ask, height=max(height, self._height))
            self._held = await Held.enter(opening)
        self._answer = answer
        try:
            yield self._held.value
        finally:
            self._answer = None

    async def lost(self) -> SandboxLost:
        """Waits until the sandbox is lost; there must be one."""
        return await self._live().lost()

    async def add_context(self, context: Context, variable: str) -> None:
        """The next run finds it under this name, and is told. Not while a run is in progress.

        Raises `InvalidInput` for a name that is no identifier or is taken; `SandboxLost`.
        """
        if not variable.isidentifier() or variable.startswith("__"):
            raise InvalidInput("variable", f"must be a Python identifier; it is {variable!r}.")
        if variable in self._names():
            raise InvalidInput("variable", f"{variable!r} is taken.", "Choose another name.")
        await self._live().add_context(context, variable)
        self._added[variable] = context
        info = context.info
        self._untold.append(
            f"There is a new variable: `{variable}`, a {info.type_name} of {info.length:,} {info.unit}."
        )

    def take_news(self) -> str:
        """What the model has not been told of yet; told once."""
        news, self._untold = " ".join(self._untold), []
        return news

    async def close(self) -> None:
        """The sandbox is gone when this returns; a second time does nothing."""
        held, self._held = self._held, None
        if held is not None:
            await held.leave()

    def _live(self) -> Sandbox:
        if self._held is None:
            raise Busy("the session has no sandbox yet.", "Wait for its first run.")
        return self._held.value

    def _names(self) -> frozenset[str]:
        return _SCAFFOLD | self._added.keys() | _variables(self.memory.transcript)

    async def _ask(self, batch: Batch) -> Sequence[Slot]:
        answer = self._answer
        if answer is None:
            raise RuntimeError("a question outside a run")  # the sandbox lets none through without a cell
        return await answer(batch)


def _variables(transcript: Transcript | None) -> frozenset[str]:
    """The names after the last cell that ended."""
    while transcript is not None:
        for turn in reversed(transcript.turns):
            for cell in reversed(turn.cells):
                if cell.result is not None:
                    return frozenset(variable.name for variable in cell.result.variables)
        transcript = transcript.earlier
    return frozenset()
