"""No interleaving of calls passes a limit, nobody is forgotten in the queue, and refusals say what to do."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.budget import Account, Budget, Reservation, Share, Wanted
from orchestrator.errors import BudgetExceeded
from orchestrator.values import Limits, Spent, Usage


def dollar_a_thousand(usage: Usage) -> float:
    return usage.total_tokens / 1000


def wanted(
    input_tokens: int = 10, output_tokens: int = 50, *, least: int = 16, depth: int = 0, priced: bool = True
) -> Wanted:
    price = dollar_a_thousand if priced else None
    return Wanted("m", depth, input_tokens, output_tokens, least, price)


def used(tokens: int) -> Spent:
    return Spent(calls=1, usage=Usage(tokens, 0), cost_usd=tokens / 1000)


class Held:
    """A reservation held in a task until it is told what was spent."""

    def __init__(self, budget: Budget, want: Wanted) -> None:
        self._budget = budget
        self._want = want
        self._spent: asyncio.Future[Spent] = asyncio.get_running_loop().create_future()
        self.granted: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._budget.reserve(self._want) as reservation:
            self.granted.set_result(reservation)
            reservation.settle(await self._spent)

    async def settle(self, spent: Spent) -> None:
        self._spent.set_result(spent)
        await self.task

    async def must_be_granted(self) -> Reservation:
        await settled()
        assert self.granted.done(), "nothing stands in its way, and it waits"
        return self.granted.result()


async def settled() -> None:
    """Lets every task that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_without_limits_nothing_is_clamped_and_all_is_counted() -> None:
    budget = Budget(Limits())
    async with budget.reserve(wanted()) as reservation:
        assert reservation.max_output_tokens is None
        reservation.settle(used(30))
    assert budget.spent == used(30)


async def test_usage_of_children_is_in_the_totals_by_depth_and_model() -> None:
    budget = Budget(Limits())
    for depth, model in [(0, "root"), (1, "leaf"), (1, "leaf"), (2, "leaf")]:
        async with budget.reserve(Wanted(model, depth, 1, 1)) as reservation:
            reservation.settle(used(10))
    budget.take_sandbox(depth=1)
    assert budget.spent.calls == 4
    assert budget.spent.usage.total_tokens == 40
    assert {depth: spent.calls for depth, spent in budget.by_depth.items()} == {0: 1, 1: 2, 2: 1}
    assert budget.by_depth[1].sandboxes == 1
    assert budget.by_model["leaf"].calls == 3
    assert sum(budget.by_depth.values(), Spent()) == budget.spent
    assert budget.by_model.keys() == {"root", "leaf"}
    assert sum(budget.by_model.values(), Spent(sandboxes=1)) == budget.spent


async def test_calls_at_the_same_time_cannot_pass_the_limit_of_calls_together() -> None:
    budget = Budget(Limits(max_calls=3))
    made = 0

    async def call() -> None:
        nonlocal made
        async with budget.reserve(wanted()) as reservation:
            made += 1
            await asyncio.sleep(0)
            reservation.settle(used(1))

    results = await asyncio.gather(*(call() for _ in range(10)), return_exceptions=True)
    assert made == 3
    assert [type(result) for result in results] == [type(None)] * 3 + [BudgetExceeded] * 7


async def test_a_call_waits_while_others_may_leave_room_and_then_gets_it() -> None:
    budget = Budget(Limits(max_tokens=100))
    first = Held(budget, wanted(10, 50))
    await first.must_be_granted()
    second = Held(budget, wanted(10, 50))
    await settled()
    assert not second.granted.done()
    await first.settle(used(20))
    assert (await second.must_be_granted()).max_output_tokens == 50
    await second.settle(used(60))


async def test_the_output_is_clamped_to_what_is_left() -> None:
    budget = Budget(Limits(max_tokens=100))
    async with budget.reserve(wanted(10, 500)) as reservation:
        assert reservation.max_output_tokens == 90
        reservation.settle(used(40))
    async with budget.reserve(wanted(10, 500)) as reservation:
        assert reservation.max_output_tokens == 50


async def test_the_output_is_clamped_to_the_money_that_is_left() -> None:
    budget = Budget(Limits(max_cost_usd=0.1))
    async with budget.reserve(wanted(10, 500)) as reservation:
        assert reservation.max_output_tokens == 90
        reservation.settle(used(84))
    with pytest.raises(BudgetExceeded) as caught:
        async with budget.reserve(wanted(10, 500)):
            pass
    assert caught.value.limit == "max_cost_usd"


async def test_a_hopeless_call_is_refused_at_once_whatever_is_in_flight() -> None:
    budget = Budget(Limits(max_tokens=100))
    held = Held(budget, wanted(10, 20))
    await held.must_be_granted()
    with pytest.raises(BudgetExceeded, match="max_tokens") as caught:
        async with budget.reserve(wanted(90, 20)):
            pass
    assert (caught.value.allowed, caught.value.used, caught.value.wanted) == (100, 0, 106)
    assert "Raise max_tokens" in str(caught.value)
    await held.settle(used(1))


async def test_a_cost_limit_needs_a_price() -> None:
    budget = Budget(Limits(max_cost_usd=1.0))
    with pytest.raises(BudgetExceeded, match=r"No price is known for the model 'm'.*RLM_PRICES.*drop max_cost_usd"):
        async with budget.reserve(wanted(priced=False)):
            pass
    assert budget.spent == Spent()


async def test_first_come_first_served_even_for_a_small_call_behind_a_large_one() -> None:
    budget = Budget(Limits(max_tokens=100))
    first = Held(budget, wanted(10, 60))
    await first.must_be_granted()
    large, small = Held(budget, wanted(10, 60)), Held(budget, wanted(1, 16))
    await settled()
    assert not large.granted.done()
    assert not small.granted.done()
    await first.settle(used(5))
    await settled()
    assert large.granted.done()
    assert small.granted.done()
    await large.settle(used(5))
    await small.settle(used(5))


async def test_one_who_leaves_the_queue_lets_those_behind_it_go_on() -> None:
    budget = Budget(Limits(max_tokens=100))
    first = Held(budget, wanted(10, 60))
    await first.must_be_granted()
    large, small = Held(budget, wanted(10, 80)), Held(budget, wanted(1, 16))
    await settled()
    large.task.cancel()
    assert (await small.must_be_granted()).max_output_tokens == 16
    await first.settle(used(5))
    await small.settle(used(5))


async def test_one_who_is_cancelled_just_as_it_is_served_gives_its_room_back() -> None:
    budget = Budget(Limits(max_tokens=100))
    first = Held(budget, wanted(10, 80))
    await first.must_be_granted()
    served, behind = Held(budget, wanted(10, 80)), Held(budget, wanted(10, 80))
    await settled()
    first.task.add_done_callback(lambda task: served.task.cancel())  # after its room was given on, before it runs
    await first.settle(used(0))
    assert (await behind.must_be_granted()).max_output_tokens == 80
    await behind.settle(used(0))
    with pytest.raises(asyncio.CancelledError):
        await served.task


async def test_sandboxes_are_counted_and_limited() -> None:
    budget = Budget(Limits(max_sandboxes=2))
    budget.take_sandbox()
    budget.take_sandbox()
    with pytest.raises(BudgetExceeded, match="max_sandboxes=2"):
        budget.take_sandbox()
    assert budget.spent.sandboxes == 2


@dataclass(frozen=True)
class Call:
    input_tokens: int
    output_tokens: int
    share_used: float  # of what was granted
    turns: int  # of the loop that it takes
    cancelled_after: int | None
    cached: bool


CALLS = st.builds(
    Call,
    input_tokens=st.integers(0, 60),
    output_tokens=st.integers(1, 80),
    share_used=st.floats(0, 1),
    turns=st.integers(0, 6),
    cancelled_after=st.none() | st.integers(0, 12),
    cached=st.booleans(),
)


async def test_trees_that_share_an_account_cannot_pass_its_limit_together() -> None:
    share = Share(Account(cost_usd=0.02), Limits(max_cost_usd=0.16), "Ask the operator.")
    one, other = Budget(Limits(max_cost_usd=0.14), share), Budget(Limits(), share)
    first = Held(one, wanted(10, 50))
    second = Held(other, wanted(10, 50))
    assert (await first.must_be_granted()).max_output_tokens == 50
    assert (await second.must_be_granted()).max_output_tokens == 50
    third, fourth = Held(other, wanted(10, 50)), Held(one, wanted(1, 1, least=1))
    await settled()
    assert not third.granted.done()
    assert not fourth.granted.done()  # it would fit, and came later
    await first.settle(used(20))
    assert (await third.must_be_granted()).max_output_tokens == 50
    assert not fourth.granted.done()
    await second.settle(used(58))
    await fourth.must_be_granted()
    await third.settle(used(60))
    await fourth.settle(used(1))
    assert (one.spent.usage.total_tokens, other.spent.usage.total_tokens) == (21, 118)
    with pytest.raises(BudgetExceeded, match="Ask the operator"):
        async with other.reserve(wanted(10, 50)):
            pass


async def test_one_tree_that_waits_for_itself_holds_no_other_up() -> None:
    share = Share(Account(), Limits(max_tokens=10_000))
    one, other = Budget(Limits(max_tokens=100), share), Budget(Limits(), share)
    first, waiting = Held(one, wanted(10, 50)), Held(one, wanted(10, 50))
    await first.must_be_granted()
    await settled()
    assert not waiting.granted.done()
    passing = Held(other, wanted(10, 50))
    await passing.must_be_granted()
    await passing.settle(used(60))
    assert not waiting.granted.done()
    await first.settle(used(20))
    await waiting.must_be_granted()
    await waiting.settle(used(1))


@given(
    trees=st.integers(1, 3),
    shared_tokens=st.none() | st.integers(20, 400),
    shared_cost=st.none() | st.floats(0.02, 0.4),
    calls=st.lists(CALLS, max_size=25),
    max_calls=st.none() | st.integers(1, 12),
    max_tokens=st.none() | st.integers(20, 400),
    max_cost=st.none() | st.floats(0.02, 0.4),
    seed=st.integers(0, 2**16),
)
def test_no_interleaving_passes_a_limit_or_forgets_a_waiter(
    trees: int,
    shared_tokens: int | None,
    shared_cost: float | None,
    calls: list[Call],
    max_calls: int | None,
    max_tokens: int | None,
    max_cost: float | None,
    seed: int,
) -> None:
    share = Share(Account(), Limits(max_tokens=shared_tokens, max_cost_usd=shared_cost))
    own = Limits(max_calls=max_calls, max_tokens=max_tokens, max_cost_usd=max_cost)
    budgets = [Budget(own, share) for _ in range(trees)]
    chance = random.Random(seed)
    in_flight: dict[int, Usage] = {}

    def check() -> None:
        all_tokens, all_cost = 0, 0.0
        for tree, budget in enumerate(budgets):
            spent = budget.spent
            usages = [usage for number, usage in in_flight.items() if number % trees == tree]
            reserved = sum(usage.total_tokens for usage in usages)
            assert max_calls is None or spent.calls + len(usages) <= max_calls
            assert max_tokens is None or spent.usage.total_tokens + reserved <= max_tokens
            assert max_cost is None or spent.cost_usd + reserved / 1000 <= max_cost + 1e-6
            all_tokens += spent.usage.total_tokens + reserved
            all_cost += spent.cost_usd + reserved / 1000
        assert shared_tokens is None or all_tokens <= shared_tokens
        assert shared_cost is None or all_cost <= shared_cost + 1e-6

    async def one(number: int, call: Call) -> None:
        want = wanted(call.input_tokens, call.output_tokens, least=4)
        async with budgets[number % trees].reserve(want) as reservation:
            granted = reservation.max_output_tokens
            limited = any(limit is not None for limit in (max_tokens, max_cost, shared_tokens, shared_cost))
            assert (granted is not None) == limited
            most = call.output_tokens if granted is None else granted
            assert min(4, call.output_tokens) <= most <= call.output_tokens
            in_flight[number] = Usage(call.input_tokens, most)
            check()
            try:
                for _ in range(call.turns):
                    await asyncio.sleep(0)
            finally:
                del in_flight[number]
                if not call.cached:
                    tokens = call.input_tokens + int(most * call.share_used)
                    reservation.settle(used(tokens))
        check()

    async def stop(task: asyncio.Task[None], turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()

    async def everything() -> None:
        tasks = []
        stops = []
        for number, call in enumerate(calls):
            tasks.append(asyncio.create_task(one(number, call)))
            if call.cancelled_after is not None:
                stops.append(asyncio.create_task(stop(tasks[-1], call.cancelled_after)))
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        # Every turn of the loop moves somebody on: a waiter that is still there after all of them was forgotten.
        for _ in range(sum(call.turns + 4 for call in calls) + 50):
            await asyncio.sleep(0)
        forgotten = [number for number, task in enumerate(tasks) if not task.done()]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, *stops, return_exceptions=True)
        assert not forgotten
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, BudgetExceeded | asyncio.CancelledError):
                raise result

        await all_that_is_left_can_be_had()

    async def all_that_is_left_can_be_had() -> None:
        budget = budgets[0]
        spent, shared = budget.spent, share.account
        tokens = [] if max_tokens is None else [max_tokens - spent.usage.total_tokens]
        tokens += [] if max_cost is None else [int((max_cost - spent.cost_usd) * 1000 - 1e-3)]
        tokens += [] if shared_tokens is None else [shared_tokens - shared.tokens]
        tokens += [] if shared_cost is None else [int((shared_cost - shared.cost_usd) * 1000 - 1e-3)]
        assert (shared.in_flight, shared.reserved_tokens, shared.reserved_usd) == (0, 0, 0.0)
        assert not shared.waiting
        if tokens and min(tokens) > 0 and (max_calls is None or spent.calls < max_calls):
            last = Held(budget, wanted(0, min(tokens), least=1))
            assert (await last.must_be_granted()).max_output_tokens == min(tokens)
            await last.settle(used(0))

    asyncio.run(everything())
    check()
