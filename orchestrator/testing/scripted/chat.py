"""The values of the scripted server: what was asked, and what may come of it.

A policy is any function from a `ChatRequest` to an `Outcome`, or to an awaitable of one:

    def policy(request: ChatRequest) -> Reply:
        return Reply(f"You said: {request.last_user}")

`Outcome` is a closed union; the server says in one `match` how each member looks on the wire:

    Reply         an ordinary completion, plain or streamed
    ApiError      an error status with OpenAI's error body
    RawBody       any bytes with any content type
    Damaged       a completion that is broken in one named way
    Hang          no answer until the client leaves
    Disconnect    the connection closes before any header
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "function"]
FinishReason: TypeAlias = Literal["stop", "length", "content_filter", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a request. `text` joins the text parts; it is empty where the content was null."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked chat completion request.

    model          the name without its fault suffix: "echo" for "echo?latency=0.2"
    max_tokens     `max_completion_tokens`, else `max_tokens`, else None
    raw            the whole JSON body as sent
    headers        the HTTP headers, names in lower case
    ordinal        0 for the first chat request that the server got, counting every one
    attempt        1 for the first request with this model and these messages, 2 for its first retry, ...
    digest         hex digest of model and messages: equal exactly for attempts of one prompt
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    raw: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    ordinal: int
    attempt: int
    digest: str

    @property
    def system(self) -> str:
        """The text of all system and developer messages, one after the other; empty if there are none."""
        return "\n".join(m.text for m in self.messages if m.role in ("system", "developer"))

    @property
    def last_user(self) -> str:
        """The text of the last user message; empty if there is none."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def first_user(self) -> str:
        """The text of the first user message, which holds the question in most conversations."""
        return next((m.text for m in self.messages if m.role == "user"), "")

    @property
    def assistant_turns(self) -> int:
        """How many replies the conversation already holds, so how far a script has come."""
        return sum(m.role == "assistant" for m in self.messages)

    @property
    def text(self) -> str:
        """The text of all messages, one a paragraph."""
        return "\n\n".join(m.text for m in self.messages)


CHARACTERS_PER_TOKEN = 4


def token_count(text: str) -> int:
    """Tokens of a text under the scripted rule: one for every 4 characters begun. O(1) at any size."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one completion, as `usage` reports them."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class UsageReport(Enum):
    """What a reply says of its usage when the policy gives no numbers of its own."""

    COUNTED = "counted"  # by `token_count`, over the messages and the reply
    OMITTED = "omitted"  # the `usage` field is left out


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion. `text=None` is `content: null`; an empty `model` answers with the name asked for.

    A text over the request's token limit is cut there and finishes with "length", as a real model's does.
    """

    text: str | None
    finish_reason: FinishReason = "stop"
    usage: Usage | UsageReport = UsageReport.COUNTED
    refusal: str | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error status with the body `{"error": {"message", "type", "param", "code"}}`."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RawBody:
    """Any bytes at all as the response."""

    body: bytes
    content_type: str
    status: int = 200


class Damage(Enum):
    """One way for a completion to be broken, on a plain response and on a stream."""

    NO_CHOICES = "no_choices"  # plain: `choices: []`               stream: one chunk without choices
    MALFORMED = "malformed"  # plain: half of the JSON document     stream: one event that is not JSON
    WRONG_CONTENT_TYPE = "wrong_content_type"  # `text/plain` around a correct body
    CUT = "cut"  # half of the bytes / `after` chunks, then the connection closes
    STALL = "stall"  # half of the bytes / `after` chunks, then nothing until the client leaves
    ERROR_BODY = "error_body"  # status 200, and an error object in the body / as an event


@dataclass(frozen=True, slots=True)
class Damaged:
    """A reply broken in one way. `after` counts the content chunks of a stream that arrive intact first."""

    reply: Reply
    damage: Damage
    after: int = 1


@dataclass(frozen=True, slots=True)
class Hang:
    """Not answered, ever: the request ends when its client leaves."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The connection closes before any byte of a response."""


Outcome: TypeAlias = Reply | ApiError | RawBody | Damaged | Hang | Disconnect
Policy: TypeAlias = Callable[[ChatRequest], Outcome | Awaitable[Outcome]]


async def ask(policy: Policy, request: ChatRequest) -> Outcome:
    """The policy's outcome, whether it answers at once or is a coroutine function."""
    outcome = policy(request)
    # A plain value is the common case in a benchmark, and `isawaitable` is the slower of the two checks.
    if isinstance(outcome, Outcome):
        return outcome
    if inspect.isawaitable(outcome):
        return await outcome
    raise TypeError(
        f"a policy must return a Reply or another Outcome, not {type(outcome).__name__}: wrap a text as Reply(text)"
    )
