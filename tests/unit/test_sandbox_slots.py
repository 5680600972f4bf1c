"""Room for sandboxes: whatever the trees, all of them finish."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidInput, SandboxUnavailable
from orchestrator.sandbox.slots import Slots

FOREVER = 3600.0


async def full_tree(slots: Slots, height: int, children: int) -> int:
    """A node that holds its slot while its children run, all at once; returns how many nodes there were."""
    async with slots.acquire(height, FOREVER):
        await asyncio.sleep(0)
        if height == 0:
            return 1
        return 1 + sum(await asyncio.gather(*(full_tree(slots, height - 1, children) for _ in range(children))))


@pytest.mark.timeout(20)
async def test_ten_deep_trees_finish_with_the_least_capacity() -> None:
    slots = Slots(3)
    counts = await asyncio.gather(*(full_tree(slots, 2, 3) for _ in range(10)))
    assert counts == [13] * 10
    assert slots.held == 0


async def test_one_plain_limit_would_hang() -> None:
    """The control: the same demand on a semaphore stops with everything held, so the test above proves something."""
    limit = asyncio.Semaphore(2)
    meeting = asyncio.Barrier(2)
    locked: list[bool] = []

    async def parent() -> None:
        async with limit:
            await meeting.wait()
            locked.append(limit.locked())
            async with limit:
                raise AssertionError("a third slot of two")

    runs = [asyncio.create_task(parent()) for _ in range(2)]
    await asyncio.wait(runs, timeout=0.05)
    assert locked == [True, True]
    assert not any(run.done() for run in runs)
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)


trees = st.recursive(st.just(()), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=12)


def height_of(tree: tuple) -> int:  # type: ignore[type-arg]
    return 1 + max(map(height_of, tree)) if tree else 0


@pytest.mark.timeout(60)
@given(forest=st.lists(trees, min_size=1, max_size=6), spare=st.integers(0, 2))
def test_any_forest_finishes(forest: list[tuple], spare: int) -> None:  # type: ignore[type-arg]
    async def run() -> int:
        slots = Slots(max(map(height_of, forest)) + 1 + spare)
        most = 0

        async def node(tree: tuple) -> None:  # type: ignore[type-arg]
            nonlocal most
            async with slots.acquire(height_of(tree), FOREVER):
                most = max(most, slots.held)
                await asyncio.gather(*map(node, tree))

        await asyncio.gather(*map(node, forest))
        assert (slots.held, slots.waiting) == (0, 0)
        assert most <= slots.capacity
        return most

    assert asyncio.run(run()) >= 1


async def test_the_lowest_goes_first_and_then_the_first_to_come() -> None:
    slots = Slots(2)
    order: list[str] = []

    async def hold(name: str, height: int) -> None:
        async with slots.acquire(height, FOREVER):
            order.append(name)
            await asyncio.sleep(0)

    async with slots.acquire(0, FOREVER), slots.acquire(0, FOREVER):
        waiters = [
            asyncio.create_task(hold(name, height)) for name, height in [("tall", 1), ("low-1", 0), ("low-2", 0)]
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*waiters)
    assert order == ["low-1", "low-2", "tall"]


async def test_waiting_too_long_is_told_and_takes_nothing() -> None:
    slots = Slots(1)
    async with slots.acquire(0, FOREVER):
        with pytest.raises(SandboxUnavailable, match=r"queue_timeout_s=0\.01.*RLM_CAPACITY"):
            async with slots.acquire(0, 0.01):
                pass
    assert slots.held == 0
    async with slots.acquire(0, FOREVER):
        assert slots.held == 1


async def test_a_waiter_that_is_cancelled_in_the_moment_of_its_grant_gives_the_slot_back() -> None:
    slots = Slots(1)

    async def hold() -> None:
        async with slots.acquire(0, FOREVER):
            await asyncio.Event().wait()

    async with slots.acquire(0, FOREVER):
        waiter = asyncio.create_task(hold())
        await asyncio.sleep(0)
    waiter.cancel()  # granted by now, and not yet awake
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert slots.held == 0


@pytest.mark.parametrize("height", [3, 7, -1])
async def test_a_height_beyond_the_capacity_is_refused(height: int) -> None:
    with pytest.raises(InvalidInput, match="capacity"):
        async with Slots(3).acquire(height, FOREVER):
            pass
