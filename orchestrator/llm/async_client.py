"""Plain completions, one or many at a time, from sync and async code alike.

::

    client = AsyncOpenAIClient(model="gpt-5-mini")
    answer = await client.completion("What is 2+2?")
    answers = await client.batch_completion(["What is 2+2?", "What is 3+3?"], max_concurrent=10)
    answers = client.batch_completion_sync(["What is 2+2?", "What is 3+3?"])   # with or without a running loop
    client.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypeVar

from orchestrator.budget import Budget
from orchestrator.config import Config
from orchestrator.errors import BudgetExceeded, DeadlineExceeded, InvalidInput, ModelFailed, ModelFailure, RLMError
from orchestrator.events import EventLog, Span
from orchestrator.llm.cache import AnswerCache, Cached
from orchestrator.llm.metered import Metered
from orchestrator.llm.openai_chat import OpenAIChat
from orchestrator.llm.openai_client import OpenAIClient, open_client
from orchestrator.llm.prices import Prices
from orchestrator.llm.retries import Backoff, Retried
from orchestrator.llm.throttle import Throttle, Throttled
from orchestrator.loop_thread import LoopThread
from orchestrator.seams import ChatModel
from orchestrator.values import FailureReason, FinishReason, Limits, Message, Reply, Role, Spent

T = TypeVar("T")
Messages: TypeAlias = str | Sequence[Mapping[str, str]]
Progress: TypeAlias = Callable[[int, int], None]  # how many are answered, of how many


class SlotText(str):
    """One result of a batch: an answer, or a text that starts with "Error: ".

    `failed` tells them apart, also from a model that says "Error: ..."; `reason` is None for an answer.
    """

    __slots__ = ("reason",)

    reason: FailureReason | None

    def __new__(cls, text: str, reason: FailureReason | None = None) -> SlotText:
        self = super().__new__(cls, text)
        self.reason = reason
        return self

    @property
    def failed(self) -> bool:
        return self.reason is not None

    def __reduce__(self) -> tuple[type[SlotText], tuple[str, FailureReason | None]]:
        return SlotText, (str(self), self.reason)  # pickle and copy keep the reason


class AsyncOpenAIClient:
    """Completions by one model, with retries, throttling, deduplication and cost tracking.

    The connection lives in a thread of its own with its own event loop, so one client serves any number of loops and
    threads. The key and the address come from OPENAI_API_KEY and OPENAI_BASE_URL when they are not given: from the
    environment, or from a `.env` file in the current folder.
    `max_concurrent` is the most API requests at a time, over all calls. `prices` are in USD per million
    tokens, as in `Prices`. `options` are further request fields for every call.

    Raises `InvalidInput` on construction for a missing key or a bad value.
    """

    def __init__(
        self,
        api_key: str | None = None,
        model: str = "gpt-5-mini",
        base_url: str | None = None,
        max_concurrent: int = 32,
        *,
        timeout_s: float = 600.0,
        max_attempts: int = 6,
        backoff: Backoff | None = None,
        limits: Limits | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        cache_mib: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        settings = Config.load({"api_key": api_key or None, "base_url": base_url or None})
        api_key, base_url = settings.api_key, settings.base_url
        self.model = model
        self._max_attempts = max_attempts
        self._backoff = backoff
        self._options = dict(options or {})
        self._price = Prices(prices).of(model, base_url)
        self._budget = Budget(limits or Limits())
        self._span: Span = EventLog().root()
        self._throttle = Throttle(max_concurrent)
        self._cache = AnswerCache(cache_mib * 2**20)
        self._closed = False
        self._thread = LoopThread("openai-client")
        opened: Future[OpenAIClient] = Future()
        # Kept: a loop holds its tasks weakly, and one that nobody refers to is collected while it waits.
        self._holding = self._thread.submit(_hold(open_client(api_key, base_url, timeout_s, max_concurrent), opened))
        try:
            self._client = opened.result()
            self._chat({}, None)  # refuses bad options now rather than at the first call
        except BaseException:
            self.close()
            raise

    @property
    def spent(self) -> Spent:
        """Calls, tokens and cost of all calls so far, failed and cancelled ones included."""
        return self._budget.spent

    async def completion(self, messages: Messages, max_tokens: int | None = None, **options: Any) -> str:
        """The model's answer to a prompt, or to a list of `{"role": ..., "content": ...}`.

        `max_tokens` limits the answer; `options` are further request fields of this call.

        Raises `ModelFailed` (also when the model refuses), `BudgetExceeded`, `TypeError` for what is no prompt.
        """
        chat = self._chat(options, max_tokens)
        return await self._thread.call_async(self._completion(_messages(messages), chat))

    def completion_sync(self, messages: Messages, max_tokens: int | None = None, **options: Any) -> str:
        """`completion` for code that cannot await; blocks its thread."""
        chat = self._chat(options, max_tokens)
        return self._thread.call(self._completion(_messages(messages), chat))

    async def batch_completion(
        self,
        prompts: Sequence[Messages],
        max_concurrent: int = 10,
        *,
        max_tokens: int | None = None,
        strict: bool = False,
        on_progress: Progress | None = None,
        **options: Any,
    ) -> list[SlotText]:
        """Answers to all prompts, at most `max_concurrent` asked at a time, in the order of the prompts.

        One failure never fails the batch: its slot is a `SlotText` with `failed` set that starts with "Error: ";
        `strict=True` raises it instead, and gives the others up. Equal prompts are asked once. `on_progress` is called
        in the client's thread.

        Raises `TypeError` or `ValueError` for wrong arguments.
        """
        batch = _check_batch(prompts, max_concurrent)
        chat = self._chat(options, max_tokens)
        return await self._thread.call_async(self._batch(batch, max_concurrent, chat, strict, on_progress))

    def batch_completion_sync(
        self,
        prompts: Sequence[Messages],
        max_concurrent: int = 10,
        *,
        max_tokens: int | None = None,
        strict: bool = False,
        on_progress: Progress | None = None,
        **options: Any,
    ) -> list[SlotText]:
        """`batch_completion` for code that cannot await; blocks its thread, whether or not a loop runs in it."""
        batch = _check_batch(prompts, max_concurrent)
        chat = self._chat(options, max_tokens)
        return self._thread.call(self._batch(batch, max_concurrent, chat, strict, on_progress))

    def close(self) -> None:
        """Gives up what is in flight and closes the connections. Calling it again does nothing."""
        self._closed = True
        self._thread.close()

    def __enter__(self) -> AsyncOpenAIClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncOpenAIClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

    def _chat(self, options: Mapping[str, Any], max_tokens: int | None) -> Metered:
        if self._closed:
            raise InvalidInput("client", "is closed.", "Make a new one.")
        # Cheap: all that is costly, the connections, is in the client that they share.
        chat = OpenAIChat(self._client, self.model, max_output_tokens=max_tokens, options={**self._options, **options})
        retried = Retried(Throttled(chat, self._throttle), self._max_attempts, backoff=self._backoff)
        return Metered(Cached(retried, self._cache), self._budget, self._price, max_output_tokens=max_tokens)

    async def _completion(self, messages: tuple[Message, ...], chat: ChatModel) -> str:
        return _accepted(await chat.chat(messages, self._span))

    async def _batch(
        self,
        batch: list[tuple[Message, ...]],
        max_concurrent: int,
        chat: ChatModel,
        strict: bool,
        on_progress: Progress | None,
    ) -> list[SlotText]:
        narrow = asyncio.Semaphore(max_concurrent)
        copies: dict[tuple[Message, ...], int] = {}
        for messages in batch:
            copies[messages] = copies.get(messages, 0) + 1
        done = 0
        stops: list[BaseException] = []

        async def slot(messages: tuple[Message, ...]) -> SlotText:
            nonlocal done
            async with narrow:
                try:
                    result = SlotText(_accepted(await chat.chat(messages, self._span)))
                except RLMError as error:
                    if strict:
                        raise
                    result = SlotText(f"Error: {error}", _reason(error))
            done += copies[messages]
            if on_progress is not None:
                try:
                    on_progress(done, len(batch))
                except (SystemExit, KeyboardInterrupt) as stop:
                    stops.append(stop)  # out of a task of its own it would end the event loop instead
                    raise _ProgressStopped from None
            return result

        try:
            results = await _all_or_none([slot(messages) for messages in copies])
        except _ProgressStopped:
            raise stops[0] from None
        answers = dict(zip(copies, results, strict=True))
        return [answers[messages] for messages in batch]


class _ProgressStopped(Exception):
    """`on_progress` wants the program to end."""


async def _hold(opening: AbstractAsyncContextManager[OpenAIClient], opened: Future[OpenAIClient]) -> None:
    """Keeps the connections open until it is cancelled, which closing the loop does to all that runs in it."""
    try:
        async with opening as client:
            opened.set_result(client)
            await asyncio.Event().wait()
    except Exception as error:
        if opened.done():
            raise
        opened.set_exception(error)


async def _all_or_none(works: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Like `asyncio.gather`, but the first failure cancels the rest and waits for their end, and comes unwrapped."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _accepted(reply: Reply) -> str:
    refused = reply.finish_reason is FinishReason.REFUSAL
    if refused or (reply.finish_reason is FinishReason.CONTENT_FILTER and not reply.text):
        raise ModelFailed(ModelFailure.REFUSED, reply.model, reply.text or "a content filter held the answer back")
    return reply.text


def _reason(error: RLMError) -> FailureReason:
    match error:
        case ModelFailed(kind=ModelFailure.REFUSED):
            return FailureReason.REFUSED
        case ModelFailed(kind=ModelFailure.TOO_LONG):
            return FailureReason.TOO_LONG
        case BudgetExceeded():
            return FailureReason.BUDGET
        case DeadlineExceeded():
            return FailureReason.DEADLINE
        case InvalidInput():
            return FailureReason.INVALID
        case _:
            return FailureReason.MODEL


def _check_batch(prompts: object, max_concurrent: object) -> list[tuple[Message, ...]]:
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list of prompts, not {type(prompts).__name__}: wrap one as [prompt]")
    if isinstance(max_concurrent, bool) or not isinstance(max_concurrent, int):
        raise TypeError(f"max_concurrent must be a whole number, not {type(max_concurrent).__name__}")
    if max_concurrent < 1:
        raise ValueError(f"max_concurrent must be at least 1; it is {max_concurrent}")
    return [_messages(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)]


def _messages(prompt: object, name: str = "messages") -> tuple[Message, ...]:
    rule = f'{name} must be a string, or a list of {{"role": ..., "content": ...}} with string contents'
    match prompt:
        case str():
            return (Message(Role.USER, prompt),)
        case list() | tuple() if prompt:
            return tuple(_message(item, rule) for item in prompt)
        case _:
            raise TypeError(f"{rule}; it is {type(prompt).__name__}")


def _message(item: object, rule: str) -> Message:
    match item:
        case {"role": "system" | "user" | "assistant" as role, "content": str() as content}:
            return Message(Role(role), content)
        case {"role": "developer", "content": str() as content}:
            return Message(Role.SYSTEM, content)
        case _:
            raise TypeError(f'{rule}; roles are "system", "user" and "assistant"; one item is {item!r:.80}')
