"""Every call has its events, its price and its place in the budget, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from orchestrator.budget import Budget
from orchestrator.errors import BudgetExceeded, InvalidInput, ModelFailed, ModelFailure
from orchestrator.events import EventLog, ModelCallEnded, ModelCallStarted, Outcome, Record, Span, SpanKind
from orchestrator.folds.totals import Totals
from orchestrator.llm.cache import AnswerCache, Cached
from orchestrator.llm.metered import DEFAULT_OUTPUT_TOKENS, Metered
from orchestrator.llm.prices import Price, Prices
from orchestrator.llm.retries import Retried
from orchestrator.llm.throttle import Throttle, Throttled
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.values import FinishReason, Limits, Message, Reply, Role, Spent, Usage

PRICE = Prices({"fake": {"input": 1.0, "output": 4.0, "cached_input": 0.1}}).of("fake")
ASK = (Message(Role.USER, "x" * 400),)  # 100 tokens by the fake's rule and by the estimate's


def recorded() -> tuple[list[Record], Span]:
    records: list[Record] = []
    return records, EventLog(records.append).root()


def ended(records: list[Record]) -> ModelCallEnded:
    last = records[-1].event
    assert isinstance(last, ModelCallEnded)
    return last


async def test_a_call_is_told_on_a_child_span_with_its_cost() -> None:
    records, root = recorded()
    budget = Budget(Limits())
    chat = Metered(FakeChatModel(lambda messages: "y" * 40), budget, PRICE, clock=iter([5.0, 7.5]).__next__)
    reply = await chat.chat(ASK, root)
    assert [record.kind for record in records] == [SpanKind.MODEL] * 2
    assert records[0].parent_id == root.id
    assert records[0].event == ModelCallStarted("fake", ASK)
    cost = (100 * 1.0 + 10 * 4.0) / 1e6
    assert ended(records) == ModelCallEnded(
        Outcome.OK, "y" * 40, FinishReason.STOP, Usage(100, 10), cost, False, "fake", 2.5
    )
    assert reply.cost_usd == cost
    assert budget.spent == Spent(calls=1, usage=Usage(100, 10), cost_usd=cost)


async def test_an_unknown_price_is_unknown_and_not_zero() -> None:
    records, root = recorded()
    budget = Budget(Limits())
    reply = await Metered(FakeChatModel(lambda messages: "yes"), budget, None).chat(ASK, root)
    assert reply.cost_usd is None
    assert ended(records).cost_usd is None
    assert budget.spent.unpriced_calls == 1


async def test_missing_usage_is_estimated_and_marked() -> None:
    records, root = recorded()
    budget = Budget(Limits())
    model = FakeChatModel(lambda messages: Reply("y" * 40, FinishReason.STOP, None, "fake"))
    await Metered(model, budget, PRICE).chat(ASK, root)
    assert (ended(records).usage, ended(records).estimated) == (Usage(100, 10), True)
    assert ended(records).cost_usd == budget.spent.cost_usd > 0
    assert budget.spent.usage == Usage(100, 10)
    assert budget.spent.estimated_calls == 1


SILENT = Reply("y" * 40, FinishReason.STOP, None, "fake")


@pytest.mark.parametrize("price", [PRICE, None], ids=["priced", "unpriced"])
@pytest.mark.parametrize(
    "outcome",
    ["y" * 40, SILENT, ModelFailed(ModelFailure.SERVER, "fake", "500"), "cancelled", "twice", "refused"],
    ids=["told", "silent", "failed", "cancelled", "twice", "refused"],
)
async def test_the_record_says_what_the_bill_says(outcome: str | Reply | Exception, price: Price | None) -> None:
    totals = Totals()
    root = EventLog(totals).root()
    budget = Budget(Limits(max_calls=0) if outcome == "refused" else Limits())
    model = FakeChatModel(lambda messages: SILENT if isinstance(outcome, str) and len(outcome) < 20 else outcome)
    if outcome == "cancelled":
        model.gate.clear()
    chat = Metered(Cached(model, AnswerCache()), budget, price)
    tasks = [asyncio.create_task(chat.chat(ASK, root)) for _ in range(2 if outcome == "twice" else 1)]
    if outcome == "cancelled":
        await model.until(lambda: model.in_flight == 1)
        tasks[0].cancel()
    await asyncio.wait(tasks)
    assert totals.tree == budget.spent
    assert totals.by_depth == budget.by_depth
    assert all(task.cancelled() or task.exception() or task.result().text for task in tasks)


async def test_a_failed_call_that_the_api_turned_down_is_counted_and_free() -> None:
    records, root = recorded()
    budget = Budget(Limits())
    model = FakeChatModel(lambda messages: ModelFailed(ModelFailure.RATE_LIMITED, "fake", "slow down"))
    with pytest.raises(ModelFailed):
        await Metered(model, budget, PRICE).chat(ASK, root)
    assert ended(records).outcome is Outcome.FAILED
    assert "slow down" in ended(records).error
    assert budget.spent == Spent(calls=1, failed_calls=1)


async def test_a_cancelled_call_in_flight_is_paid_by_estimate() -> None:
    records, root = recorded()
    budget = Budget(Limits())
    model = FakeChatModel(lambda messages: "never")
    model.gate.clear()
    task = asyncio.create_task(Metered(model, budget, PRICE).chat(ASK, root))
    await model.until(lambda: model.in_flight == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended(records).outcome is Outcome.CANCELLED
    assert budget.spent.usage == Usage(100, 0)
    assert (budget.spent.calls, budget.spent.estimated_calls) == (1, 1)


@pytest.mark.parametrize(("broken", "tries"), [(5, 6), (6, 6), (0, 1)])
async def test_each_try_that_broke_off_is_counted_once(broken: int, tries: int) -> None:
    class Breaking:
        name = identity = "breaking"

        def __init__(self) -> None:
            self.left = broken

        async def chat(self, messages: object, span: object, on_text: Any = None, *, tally: Any, **_: Any) -> Reply:
            tally.sent += 1
            on_text("x" * 4000)  # a thousand tokens, as they are estimated
            if self.left:
                self.left -= 1
                raise ModelFailed(ModelFailure.CONNECTION, self.name, "broke off")
            tally.closed += 1
            return Reply("x" * 4000, FinishReason.STOP, Usage(1, 1000), self.name)

    async def at_once(seconds: float) -> None:
        pass

    budget = Budget(Limits())
    breaking: Any = Breaking()
    chat = Metered(Retried(breaking, 6, sleep=at_once), budget)
    with contextlib.suppress(ModelFailed):
        await chat.chat((Message(Role.USER, "hi"),), EventLog().root(), lambda text: None)
    assert budget.spent.usage.output_tokens == 1000 * tries
    assert budget.spent.estimated_calls == int(broken > 0)


async def test_a_call_cancelled_before_it_was_sent_costs_nothing() -> None:
    _, root = recorded()
    budget = Budget(Limits())
    model = FakeChatModel(lambda messages: "never")
    model.gate.clear()
    chat = Metered(Throttled(model, Throttle(1)), budget, PRICE)
    sent = asyncio.create_task(chat.chat(ASK, root))
    await model.until(lambda: model.in_flight == 1)
    queued = asyncio.create_task(chat.chat(ASK, root))
    await asyncio.sleep(0)
    queued.cancel()
    await asyncio.wait({queued})
    assert budget.spent == Spent()
    model.gate.set()
    await sent


async def test_duplicates_in_flight_are_charged_once() -> None:
    _, root = recorded()
    budget = Budget(Limits())
    chat = Metered(Cached(FakeChatModel(lambda messages: "y" * 40), AnswerCache()), budget, PRICE)
    await asyncio.gather(*(chat.chat(ASK, root) for _ in range(5)))
    assert (budget.spent.calls, budget.spent.cached_calls) == (1, 4)
    assert budget.spent.usage == Usage(100, 10)


async def test_limits_are_enforced_during_a_batch() -> None:
    _, root = recorded()
    budget = Budget(Limits(max_calls=4))
    model = FakeChatModel(lambda messages: "ok")
    chat = Metered(model, budget)
    asks = [(Message(Role.USER, str(number)),) for number in range(50)]
    results = await asyncio.gather(*(chat.chat(ask, root) for ask in asks), return_exceptions=True)
    assert len(model.calls) == 4
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 46


async def test_a_token_limit_reaches_the_request_as_its_output_limit() -> None:
    _, root = recorded()
    model = FakeChatModel(lambda messages: "y" * 4000)
    budget = Budget(Limits(max_tokens=700))
    reply = await Metered(model, budget).chat(ASK, root)
    bound = 400 + 2 * 16  # its bytes, and what a template may put around one message
    assert model.calls[0].max_output_tokens == 700 - bound
    assert reply.finish_reason is FinishReason.LENGTH
    assert budget.spent.usage.total_tokens <= 700
    with pytest.raises(BudgetExceeded):
        await Metered(model, budget).chat(ASK, root)
    assert len(model.calls) == 1, "it was refused before it was sent"


@pytest.mark.parametrize(
    ("limits", "configured", "asked", "expected"),
    [
        (Limits(), None, None, None),
        (Limits(), None, 7, 7),
        (Limits(max_tokens=10**6), None, None, DEFAULT_OUTPUT_TOKENS),
        (Limits(max_tokens=10**6), 50, None, 50),
        (Limits(max_tokens=10**6), 50, 7, 7),
    ],
)
async def test_the_smallest_output_limit_holds(
    limits: Limits, configured: int | None, asked: int | None, expected: int | None
) -> None:
    _, root = recorded()
    model = FakeChatModel(lambda messages: "ok")
    await Metered(model, Budget(limits), max_output_tokens=configured).chat(ASK, root, max_output_tokens=asked)
    assert model.calls[0].max_output_tokens == expected


async def test_a_refused_call_is_told_and_not_counted() -> None:
    records, root = recorded()
    budget = Budget(Limits(max_cost_usd=1.0))
    model = FakeChatModel(lambda messages: "ok")
    with pytest.raises(BudgetExceeded):
        await Metered(model, budget, None).chat(ASK, root)
    assert ended(records).outcome is Outcome.FAILED
    assert not model.calls
    assert budget.spent == Spent()


async def test_the_depth_of_a_call_is_its_spans() -> None:
    _, root = recorded()
    budget = Budget(Limits())
    chat = Metered(FakeChatModel(lambda messages: "ok"), budget)
    await chat.chat(ASK, root.child(SpanKind.RLM, depth=2))
    assert list(budget.by_depth) == [2]


# --- prices ------------------------------------------------------------------------------------------------------


def test_a_users_price_wins() -> None:
    price = Prices({"gpt-4o-mini": {"input": 10, "output": 20}}).of("gpt-4o-mini", "http://127.0.0.1:8000/v1")
    assert price is not None
    assert price(Usage(1_000_000, 100_000, 500_000)) == 12.0


@pytest.mark.parametrize(
    "fields", [{"input": 1.0}, {"input": 1.0, "output": -1.0}, {"input": 1.0, "output": 1.0, "in": 2.0}]
)
def test_a_wrong_price_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="prices"):
        Prices({"m": fields})
