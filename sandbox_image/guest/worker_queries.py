"""The functions that ask language models, as the code in a cell finds them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from worker_asks import Ask, Asks, Question, Reply
from worker_subcalls import (
    SubcallError,
    SubcallFailed,
    check_process,
    concurrency,
    failed,
    question,
    questions,
    slots,
)

if TYPE_CHECKING:
    import asyncio


def query_functions(asks: Asks) -> dict[str, Any]:
    """All names by which models and users know these functions."""

    def llm_query(prompt: str, context: Any = None, strict: bool = False) -> str:
        """Asks a language model one question and returns its answer.

        prompt: the question, a str. The model sees nothing but this and `context`.
        context: data for the one who answers (str, bytes, or what JSON can hold), handed over beside the prompt.
        strict: raise SubcallFailed when there is no answer. Else a failure is returned: a SubcallError, which is a str
            that starts with "Error: " and has a `reason`; `failed(answer)` tells it from a model's own text.

        Many independent questions: use llm_batch, which asks them at the same time. May be called from threads.
        """
        return _ask_now(asks, "llm_query", [question("llm_query", prompt, context)], 1, strict)[0]

    def llm_batch(
        prompts: list[str], max_concurrent: int = 10, contexts: list[Any] | None = None, strict: bool = False
    ) -> list[str]:
        """Asks a language model many questions at the same time; returns the answers in the order of the prompts.

        prompts: a list of str. Equal questions are asked once, and answered everywhere.
        max_concurrent: how many are asked at a time, at least 1.
        contexts: None, or a list with one context for each prompt (see llm_query; None where there is none).
        strict: raise SubcallFailed for the first prompt that failed. Else the places of those that failed hold a
            SubcallError (see llm_query), and the others their answers.
        """
        limit = concurrency("llm_batch", max_concurrent)
        return _ask_now(asks, "llm_batch", questions("llm_batch", prompts, contexts), limit, strict)

    async def allm_query(prompt: str, context: Any = None, strict: bool = False) -> str:
        """llm_query to await: `answer = await allm_query(prompt)`, or many with asyncio.gather."""
        asked = [question("allm_query", prompt, context)]
        return (await _ask_awaiting(asks, "allm_query", asked, 1, strict))[0]

    async def allm_batch(
        prompts: list[str], max_concurrent: int = 10, contexts: list[Any] | None = None, strict: bool = False
    ) -> list[str]:
        """llm_batch to await: `answers = await allm_batch(prompts)`."""
        limit = concurrency("allm_batch", max_concurrent)
        return await _ask_awaiting(asks, "allm_batch", questions("allm_batch", prompts, contexts), limit, strict)

    for function in (llm_query, llm_batch, allm_query, allm_batch):
        function.__qualname__ = function.__name__
        function.__module__ = "__main__"
    return {
        "llm_query": llm_query,
        "llm_batch": llm_batch,
        "llm_query_batched": llm_batch,
        "rlm_query": llm_query,
        "rlm_query_batched": llm_batch,
        "allm_query": allm_query,
        "allm_batch": allm_batch,
        "llm_query_async": allm_query,
        "llm_batch_async": allm_batch,
        "SubcallError": SubcallError,
        "SubcallFailed": SubcallFailed,
        "failed": failed,
    }


def _ask_now(asks: Asks, function: str, asked: list[Question], limit: int, strict: bool) -> list[str]:
    check_process(function, asks.process)
    if not asked:
        return []
    distinct = list(dict.fromkeys(asked))
    box: list[Reply] = []
    done = threading.Lock()
    done.acquire()

    def take(reply: Reply) -> None:
        box.append(reply)
        done.release()

    ask = Ask(distinct, limit, take)
    try:
        asks.start(ask)
        done.acquire()
    except BaseException:
        asks.cancel(ask)
        raise
    return _spread(asked, distinct, slots(function, box[0], strict))


async def _ask_awaiting(asks: Asks, function: str, asked: list[Question], limit: int, strict: bool) -> list[str]:
    import asyncio  # most cells never need it, and it doubles the worker's start

    check_process(function, asks.process)
    if not asked:
        return []
    distinct = list(dict.fromkeys(asked))
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Reply] = loop.create_future()

    def take(reply: Reply) -> None:
        try:
            loop.call_soon_threadsafe(_settle, future, reply)
        except RuntimeError:
            pass  # the code has closed its event loop: nobody waits

    ask = Ask(distinct, limit, take)
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


def _spread(asked: list[Question], distinct: list[Question], answers: list[str]) -> list[str]:
    if len(distinct) == len(asked):
        return answers
    by_question = dict(zip(distinct, answers, strict=True))
    return [by_question[one] for one in asked]
