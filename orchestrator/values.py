"""The values that every part of the orchestrator speaks in: frozen, without behavior beyond their own arithmetic.

Nothing here does I/O. Sizes are in bytes and times in seconds unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

# --- what is asked -----------------------------------------------------------------------------------------------


class ContextKind(StrEnum):
    """How the guest turns a context file back into a Python object."""

    TEXT = "text"
    JSON = "json"
    BYTES = "bytes"


class ContextInfo(msgspec.Struct, frozen=True):
    """What a model is told of a context instead of the context itself."""

    kind: ContextKind
    type_name: str  # as the code will see it: "str", "list[str]", "list[dict]", "dict", "bytes"
    size_bytes: int  # of the file
    length: int  # in `unit`
    unit: str  # "characters", "items", "keys" or "bytes"
    head: str  # its first characters, at most a few hundred
    tail: str  # its last ones; empty when `head` is all of it


@dataclass(frozen=True, slots=True)
class Context:
    """A context at rest: a file that the orchestrator owns and no container can write, and what to say of it."""

    path: Path
    info: ContextInfo


_MARGIN_SHARE = 0.1  # of the time that is left
_MARGIN_MOST_S = 30.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer must be there, in seconds of the running event loop's clock."""

    at: float
    max_seconds: float  # the whole run's limit that it comes from, for messages

    def sooner(self, now: float) -> Deadline:
        """For work that is done for this one: a tenth of what is left, at most 30 s, stays to make use of it."""
        margin_s = min(_MARGIN_MOST_S, max(0.0, self.at - now) * _MARGIN_SHARE)
        return Deadline(self.at - margin_s, self.max_seconds)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A query, and the context to answer it from; `deadline` None: there is time."""

    query: str
    context: Context | None = None
    deadline: Deadline | None = None


class Attachment(msgspec.Struct, frozen=True):
    """Data that code handed along with a question (`llm_query(query, context=obj)`), not yet a file."""

    kind: ContextKind  # TEXT is UTF-8, JSON a document
    data: bytes


class Question(msgspec.Struct, frozen=True):
    prompt: str
    attachment: Attachment | None = None


class Batch(msgspec.Struct, frozen=True):
    """What one `llm_batch` asks; `llm_query` is a batch of one."""

    questions: tuple[Question, ...]
    max_concurrent: int
    stop_at_failure: bool = False  # the first failure cancels the questions that are left
    recursive: bool | None = None  # plain or recursive sub-calls, as far as the depth allows; None: as the host likes


class FailureReason(StrEnum):
    """Why one question of a batch has no answer. The guest sees this word and a fixed text, nothing else."""

    MODEL = "model"
    REFUSED = "refused"
    TOO_LONG = "too_long"
    BUDGET = "budget"
    DEADLINE = "deadline"
    SANDBOX = "sandbox"
    INVALID = "invalid"
    CANCELLED = "cancelled"  # another question of its batch failed, and that was to be enough
    NO_ROOM = "no_room"


class Answered(msgspec.Struct, frozen=True):
    text: str


class Failed(msgspec.Struct, frozen=True):
    reason: FailureReason
    message: str  # safe to show to untrusted code


Slot = Answered | Failed


# --- what a model says -------------------------------------------------------------------------------------------


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Message(msgspec.Struct, frozen=True):
    role: Role
    content: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the API counted them. `cached_input_tokens` is the part of `input_tokens` read from a prompt cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
        )


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"  # cut by the output limit: the text is a beginning
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a raw chat model."""

    text: str  # "" when the API gave null or nothing
    finish_reason: FinishReason
    usage: Usage | None  # None: the API did not say
    model: str  # as the API names it
    cost_usd: float | None = None  # None: no price is known for this model
    cached: bool = False  # answered without an API request of its own


class Ending(StrEnum):
    """How a completion came to its text."""

    FINAL = "final"  # the model gave its final answer
    BEST_EFFORT = "best_effort"  # out of iterations: its best answer so far
    PLAIN = "plain"  # a plain model call: there was nothing to iterate


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer of a `LanguageModel`: a leaf's or a whole tree's."""

    text: str
    ending: Ending


# --- what a cell does --------------------------------------------------------------------------------------------


class CellStatus(StrEnum):
    OK = "ok"
    ERROR = "error"  # the code raised, or could not be compiled
    TIMED_OUT = "timed_out"  # interrupted by its time limit; state is kept
    INTERRUPTED = "interrupted"  # interrupted by the caller; state is kept
    WORKER_DIED = "worker_died"  # all variables are gone; a fresh worker is up


class DeathCause(StrEnum):
    """What ended a worker process in the middle of a cell."""

    EXITED = "exited"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    PROTOCOL = "protocol"


class WorkerDeath(msgspec.Struct, frozen=True):
    cause: DeathCause
    code: int = 0  # exit status with EXITED, signal number with CRASHED


class Captured(msgspec.Struct, frozen=True):
    """One output stream of a cell: its head, its tail, and how much there was.

    `head + tail` is all of it when `total_bytes` is not larger; else the middle was left out. Text is decoded as UTF-8
    with U+FFFD for what is not.
    """

    head: str = ""
    tail: str = ""
    total_bytes: int = 0
    omitted_bytes: int = 0

    @property
    def text(self) -> str:
        if not self.omitted_bytes:
            return self.head + self.tail
        return f"{self.head}\n[... {self.omitted_bytes:,} bytes left out ...]\n{self.tail}"


class CodeError(msgspec.Struct, frozen=True):
    type_name: str
    message: str
    traceback: str


class FinalAnswer(msgspec.Struct, frozen=True):
    """What the code declared to be the answer. `""`, `0` and `None` are answers too: presence is what counts."""

    text: str
    type_name: str
    length: int  # true length in characters; larger than len(text) when it was cut


class Variable(msgspec.Struct, frozen=True):
    name: str
    type_name: str
    size: str  # "12 items", "34,567 characters", or empty


class CellResult(msgspec.Struct, frozen=True):
    """All that came of one cell. The *code's* failure is data here; a sandbox's failure is `SandboxLost`."""

    status: CellStatus
    stdout: Captured = Captured()
    stderr: Captured = Captured()
    error: CodeError | None = None
    death: WorkerDeath | None = None
    final: FinalAnswer | None = None
    variables: tuple[Variable, ...] = ()
    seconds: float = 0.0  # running time, waiting for answers not counted

    @property
    def state_lost(self) -> bool:
        return self.status is CellStatus.WORKER_DIED


class OutputStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class OutputChunk(msgspec.Struct, frozen=True):
    """A piece of a running cell's output, as it came. `offset` counts bytes from the cell's start on that stream."""

    stream: OutputStream
    offset: int
    text: str


# --- what a tree may use -----------------------------------------------------------------------------------------


class Limits(msgspec.Struct, frozen=True):
    """What a whole tree (a root run with all its descendants) may use. `None` is no limit."""

    max_calls: int | None = None  # model calls, of any depth
    max_tokens: int | None = None  # input and output together
    max_cost_usd: float | None = None
    max_seconds: float | None = None  # wall clock
    max_sandboxes: int | None = None  # ever opened, not at a time


class Spent(msgspec.Struct, frozen=True):
    """What a tree, or a part of one, has used. `cost_usd` counts only calls whose price is known."""

    calls: int = 0  # with an API request of their own, failed and cancelled ones included
    cached_calls: int = 0  # answered without one; not in `calls`
    failed_calls: int = 0
    usage: Usage = Usage()
    cost_usd: float = 0.0
    unpriced_calls: int = 0  # their cost is unknown, not zero
    sandboxes: int = 0
    estimated_calls: int = 0  # their usage is our estimate: cancelled, cut off, or not told by the API

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.cached_calls + other.cached_calls,
            self.failed_calls + other.failed_calls,
            self.usage + other.usage,
            self.cost_usd + other.cost_usd,
            self.unpriced_calls + other.unpriced_calls,
            self.sandboxes + other.sandboxes,
            self.estimated_calls + other.estimated_calls,
        )


# --- what comes of a run ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchSpent:
    """One `llm_batch` or `llm_query` of a cell, and all that was used for it, also by what is beneath it."""

    depth: int  # of the RLM that asked
    size: int  # questions, equal ones included
    failed: int
    seconds: float
    spent: Spent


@dataclass(frozen=True, slots=True)
class RunResult:
    """The answer of a run, and what it took. `by_batch` holds the latest 1,000 batches, in the order of their ends."""

    run_id: str
    answer: str
    ending: Ending
    spent: Spent
    by_model: Mapping[str, Spent]
    by_depth: Mapping[int, Spent]
    seconds: float
    by_batch: tuple[BatchSpent, ...] = ()
