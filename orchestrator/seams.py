"""The narrow places where the parts meet. Each has a fake beside the real thing, and one contract suite for both.

The RLM loop, the engine, gRPC and OpenAI never import one another: they know these protocols and `build.py` joins them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from orchestrator.errors import SandboxLost
from orchestrator.events import Span
from orchestrator.values import (
    Attachment,
    Batch,
    CellResult,
    Completion,
    Context,
    Message,
    OutputChunk,
    Prompt,
    Reply,
    Slot,
)

MAX_FILE_BYTES = 32 * 1024 * 1024  # of a file that is written into a sandbox or read out of it

TextSink = Callable[[str], None]
OutputSink = Callable[[OutputChunk], None]

# What a sandbox does with the questions its code asks. Called only while a cell runs, cancelled when that cell ends.
Answer = Callable[[Batch], Awaitable[Sequence[Slot]]]


@dataclass(slots=True)
class RequestTally:
    """The API requests made for one chat call: known also of a call that fails or is cancelled.

    A request is open from its dispatch until what it cost is known: a reply came, or the API turned it down. One that
    was cut off or given up stays open, since the API may bill what nobody read.
    """

    sent: int = 0
    closed: int = 0

    @property
    def open(self) -> int:
        return self.sent - self.closed

    def add(self, other: RequestTally) -> None:
        self.sent += other.sent
        self.closed += other.closed


class ChatModel(Protocol):
    """The raw model: the only thing that costs money."""

    @property
    def name(self) -> str:
        """The model's name as configured, for events and prices."""

    @property
    def identity(self) -> str:
        """Equal for two chat models exactly when equal messages are the same request to both."""

    async def chat(
        self,
        messages: Sequence[Message],
        span: Span,
        on_text: TextSink | None = None,
        *,
        max_output_tokens: int | None = None,
        tally: RequestTally | None = None,
    ) -> Reply:
        """One chat completion.

        `span` is the caller's; the wrapper that meters emits `ModelCallStarted` and `ModelCallEnded` on a child of it.
        `on_text` gets the reply's pieces as they stream; after a retry it starts over (a `ModelRetried` tells).
        `max_output_tokens` narrows the model's own output limit for this call (a budget that runs low does
        that); a reply that it cuts ends with `FinishReason.LENGTH`. `tally` is filled as requests are made.

        Raises `ModelFailed`, `BudgetExceeded`.
        """


class LanguageModel(Protocol):
    """Anything that completes a prompt: a plain model, or an RLM, without the caller knowing."""

    @property
    def recursive(self) -> bool:
        """Whether it has a REPL of its own: a caller with data puts it into `Prompt.context` rather than the text."""

    async def completion(self, prompt: Prompt, span: Span) -> Completion:
        """Raises `ModelFailed`, `SandboxUnavailable`, `SandboxLost`, `BudgetExceeded`, `DeadlineExceeded`."""


class Sandbox(Protocol):
    """Where one RLM's code lives. Lost once, lost for good."""

    @property
    def name(self) -> str: ...

    @property
    def warm(self) -> bool:
        """Whether it was ready before it was asked for."""

    async def run(
        self, code: str, on_output: OutputSink | None = None, *, time_limit_s: float | None = None
    ) -> CellResult:
        """Runs a cell in the one live namespace; one at a time. `time_limit_s` None is the factory's default.

        Cancelling it interrupts the cell and gives the sandbox up. Raises `SandboxLost`, never for the code's faults;
        `InvalidInput` for a limit that is not more than 0.
        """

    async def interrupt(self) -> None:
        """Stops the running cell as Ctrl-C would; its `run` returns INTERRUPTED. Nothing happens without one."""

    async def add_context(self, context: Context, variable: str) -> None:
        """The code finds one more context, under this name, from its next cell on. Not while a cell runs.

        Raises `SandboxLost`.
        """

    async def write_file(self, path: str, data: bytes) -> None:
        """Writes a file below /tmp, also beside a running cell; `path` is relative and plain ("data/table.csv").

        At most `MAX_FILE_BYTES`. Raises `FileFailed`, `SandboxLost`.
        """

    async def read_file(self, path: str) -> bytes:
        """What a regular file below /tmp holds. Raises `FileFailed`, `SandboxLost`."""

    async def lost(self) -> SandboxLost:
        """Waits until it is lost or closed, and says how."""


class SandboxFactory(Protocol):
    def open(
        self, context: Context | None, answer: Answer | None, *, height: int = 0
    ) -> AbstractAsyncContextManager[Sandbox]:
        """A fresh single-use sandbox for the block; destroyed after it, whatever happens in it.

        `context` is what the code finds under that name. `answer` answers its `llm_query` and `llm_batch`; None:
        they are not there. `height` is how many levels of sandboxes may be opened beneath this one while it is held:
        room is given so that those below can always finish.

        Raises `SandboxUnavailable`, also when no room is found in time.
        """


class ContextStore(Protocol):
    """Turns values into contexts at rest. A context is written once, however many sandboxes read it."""

    async def put(self, value: object) -> Context:
        """`str`, `bytes`, `pathlib.Path` (a file, not copied into memory), or what JSON can hold (list, dict, ...).

        Raises `InvalidInput` for anything else.
        """

    async def put_attachment(self, attachment: Attachment) -> Context:
        """What a guest handed along. Raises `InvalidInput` when it is not what its kind says."""

    async def read_text(self, context: Context, limit_bytes: int) -> str:
        """The context as text, for a model that has no REPL.

        Raises `InvalidInput` when it is larger than the limit, and for bytes that are no UTF-8 text.
        """

    async def drop(self, context: Context) -> None:
        """Removes the file; a sandbox that has it keeps it to its end."""
