"""The functions that ask language models, as the code in a cell finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from worker_asks import Ask, Asks
from worker_calls import Question, Reply
from worker_readers import Waiter
from worker_subcalls import (
    SubcallError,
    SubcallFailed,
    check_process,
    choice,
    concurrency,
    failed,
    question,
    questions,
    slots,
)

if TYPE_CHECKING:
    import asyncio


class QueryNames(NamedTuple):
    """`taught` are named by the system prompt and stay; `offered` are there until the code calls something else so."""

    taught: dict[str, Any]
    offered: dict[str, Any]


def query_functions(asks: Asks) -> QueryNames:
    """All names by which models and users know these functions."""

    def llm_query(prompt: str, context: Any = None, strict: bool = False, recursive: bool | None = None) -> str:
        """Asks a language model one question and returns its answer.

        prompt: the question, a str. The model sees nothing but this and `context`.
        context: data for the one who answers (str, bytes, or what JSON can hold), handed over beside the prompt.
        strict: raise SubcallFailed when there is no answer. Else a failure is returned: a SubcallError, which is a str
            that starts with "Error: " and has a `reason`; `failed(answer)` tells it from a model's own text.
        recursive: False asks for a plain completion, True for an agent with a REPL where the depth allows one. None
            leaves it to the run.

        Many independent questions: use llm_batch, which asks them at the same time. May be called from threads.
        """
        recursive = choice("llm_query", recursive)
        return _ask_now(asks, "llm_query", [question("llm_query", prompt, context)], 1, strict, recursive)[0]

    def llm_batch(
        prompts: list[str],
        max_concurrent: int = 10,
        contexts: list[Any] | None = None,
        strict: bool = False,
        recursive: bool | None = None,
    ) -> list[str]:
        """Asks a language model many questions at the same time; returns the answers in the order of the prompts.

        prompts: a list of str. Equal questions are asked once, and answered everywhere.
        max_concurrent: how many are asked at a time, at least 1.
        contexts: None, or a list with one context for each prompt (see llm_query; None where there is none).
        strict: raise SubcallFailed at the first failure; the questions that are left are cancelled. Else the places
            of those that failed hold a SubcallError (see llm_query), and the others their answers.
        recursive: see llm_query; for all of them.
        """
        limit = concurrency("llm_batch", max_concurrent)
        recursive = choice("llm_batch", recursive)
        return _ask_now(asks, "llm_batch", questions("llm_batch", prompts, contexts), limit, strict, recursive)

    def rlm_query(prompt: str, context: Any = None, strict: bool = False) -> str:
        """llm_query(..., recursive=True): an agent with a REPL answers, where the depth allows one."""
        return _ask_now(asks, "rlm_query", [question("rlm_query", prompt, context)], 1, strict, True)[0]

    def rlm_query_batched(
        prompts: list[str], max_concurrent: int = 10, contexts: list[Any] | None = None, strict: bool = False
    ) -> list[str]:
        """llm_batch(..., recursive=True): agents with REPLs answer, where the depth allows them."""
        limit = concurrency("rlm_query_batched", max_concurrent)
        asked = questions("rlm_query_batched", prompts, contexts)
        return _ask_now(asks, "rlm_query_batched", asked, limit, strict, True)

    async def allm_query(prompt: str, context: Any = None, strict: bool = False, recursive: bool | None = None) -> str:
        """llm_query to await: `answer = await allm_query(prompt)`, or many with asyncio.gather."""
        recursive = choice("allm_query", recursive)
        asked = [question("allm_query", prompt, context)]
        return (await _ask_awaiting(asks, "allm_query", asked, 1, strict, recursive))[0]

    async def allm_batch(
        prompts: list[str],
        max_concurrent: int = 10,
        contexts: list[Any] | None = None,
        strict: bool = False,
        recursive: bool | None = None,
    ) -> list[str]:
        """llm_batch to await: `answers = await allm_batch(prompts)`."""
        limit = concurrency("allm_batch", max_concurrent)
        recursive = choice("allm_batch", recursive)
        asked = questions("allm_batch", prompts, contexts)
        return await _ask_awaiting(asks, "allm_batch", asked, limit, strict, recursive)

    functions = (llm_query, llm_batch, rlm_query, rlm_query_batched, allm_query, allm_batch)
    for function in functions:
        function.__qualname__ = function.__name__
        function.__module__ = "__main__"
    taught = (llm_query, llm_batch, rlm_query, allm_query, allm_batch)
    return QueryNames(
        taught={function.__name__: function for function in taught},
        offered={
            "llm_query_batched": llm_batch,
            "rlm_query_batched": rlm_query_batched,
            "llm_query_async": allm_query,
            "llm_batch_async": allm_batch,
            "SubcallError": SubcallError,
            "SubcallFailed": SubcallFailed,
            "failed": failed,
        },
    )


def _ask_now(
    asks: Asks, function: str, asked: list[Question], limit: int, strict: bool, recursive: bool | None
) -> list[str]:
    """`function` is the name by which the code knows it, for messages."""
    check_process(function, asks.process)
    if not asked:
        return []
    distinct = _distinct(asked)
    box: list[Reply] = []
    waiter = Waiter()

    def take(reply: Reply) -> None:
        box.append(reply)
        asks.finish(waiter)

    ask = Ask(distinct, limit, take, stop_at_failure=strict, recursive=recursive)
    try:
        asks.start(ask)
        asks.wait(waiter)
    except BaseException:
        asks.cancel(ask)
        raise
    return _spread(asked, distinct, slots(function, box[0], strict))


async def _ask_awaiting(
    asks: Asks, function: str, asked: list[Question], limit: int, strict: bool, recursive: bool | None
) -> list[str]:
    import asyncio  # most cells never need it, and it doubles the worker's start

    check_process(function, asks.process)
    if not asked:
        return []
    distinct = _distinct(asked)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Reply] = loop.create_future()

    def take(reply: Reply) -> None:
        try:
            loop.call_soon_threadsafe(_settle, future, reply)
        except RuntimeError:
            pass  # the code has closed its event loop: nobody waits

    ask = Ask(distinct, limit, take, stop_at_failure=strict, recursive=recursive, awaited=True)
    try:
        asks.start(ask)
        reply = await future
    except BaseException:
        asks.cancel(ask)
        raise
    return _spread(asked, distinct, slots(function, reply, strict))


def _settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    if not future.done():
        future.set_result(reply)


def _distinct(asked: list[Question]) -> list[Question]:
    return asked if len(asked) == 1 else list(dict.fromkeys(asked))  # a hash reads all of a prompt


def _spread(asked: list[Question], distinct: list[Question], answers: list[str]) -> list[str]:
    if len(distinct) == len(asked):
        return answers
    by_question = dict(zip(distinct, answers, strict=True))
    return [by_question[one] for one in asked]
