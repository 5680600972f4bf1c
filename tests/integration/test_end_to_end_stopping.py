"""Who stops a run, or a cell that ends early, leaves nothing behind and pays for nothing that nobody reads."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.events import BatchEnded, Outcome, QueryEnded, RunEnded, SandboxEnded, SandboxStarted
from orchestrator.testing.scripted import Hang, Policy, always, constant, held_until, route
from orchestrator.testing.scripted.policies import last_user_has
from orchestrator.testing.scripted.record import RequestState
from tests.integration.e2e_world import containers_of, reply, world

pytestmark = pytest.mark.docker


async def test_cancelling_a_two_level_run_takes_everything_of_it_away() -> None:
    policies: dict[str, Policy] = {
        "depth-0": constant(reply("FINAL(str(llm_batch(['a', 'b', 'c'], max_concurrent=3)))")),
        "depth-1": constant(reply("FINAL(str(llm_batch([context + n for n in '1234'])))")),
        "leaf": always(Hang()),
    }
    async with world(policies) as w:
        run = asyncio.create_task(w.ask())
        await w.server.wait_for(lambda log: log.in_flight == 12)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

        await w.server.wait_for(lambda log: log.in_flight == 0)
        assert w.server.count(RequestState.CANCELLED) == 12
        assert len(w.events(SandboxStarted)) == len(w.events(SandboxEnded)) == 4
        assert [end.outcome for end in w.events(QueryEnded)] == [Outcome.CANCELLED] * 15
        assert [end.outcome for end in w.events(RunEnded)] == [Outcome.CANCELLED]
        # Another run is none the worse for it, and at its end nothing of either is left (`world` looks).
        again = asyncio.create_task(w.ask())
        await w.server.wait_for(lambda log: log.in_flight == 12)
        again.cancel()
        await asyncio.wait([again])


async def test_cancelling_a_run_while_its_first_sandbox_starts_leaves_no_container() -> None:
    async with world({"depth-0": always(Hang()), "leaf": always(Hang())}) as w:
        run = asyncio.create_task(w.ask())
        await w.server.wait_for(lambda log: log.in_flight == 1)
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled()


async def test_a_cell_that_ends_with_calls_in_flight_cancels_them() -> None:
    code = """
import threading

for number in range(3):
    threading.Thread(target=llm_query, args=(f"nobody waits for this: {number}",), daemon=True).start()
FINAL(llm_query("Are they on their way?"))
"""
    three_wait = asyncio.Event()
    leaf = route((last_user_has("on their way"), held_until(three_wait, "yes")), otherwise=always(Hang()))
    async with world({"depth-0": constant(reply(code)), "leaf": leaf}) as w:
        run = asyncio.create_task(w.ask())
        await w.server.wait_for(lambda log: log.in_flight == 4)
        three_wait.set()
        assert (await run).answer == "yes"
        await w.server.wait_for(lambda log: log.in_flight == 0)
        assert w.server.count(RequestState.CANCELLED) == 3
        assert sorted(end.outcome for end in w.events(BatchEnded)) == sorted([Outcome.CANCELLED] * 3 + [Outcome.OK])


async def test_a_run_that_is_over_has_no_container_though_others_go_on() -> None:
    hold = asyncio.Event()
    policies: dict[str, Policy] = {
        "depth-0": route((last_user_has("long"), reply("FINAL(llm_query('hold'))")), otherwise=reply("FINAL('short')")),
        "leaf": held_until(hold, "done"),
    }
    async with world(policies, pool_max=0) as w:
        long = asyncio.create_task(w.ask("long"))
        await w.server.wait_for(lambda log: log.in_flight == 1 and log.started == 2)
        (kept,) = await containers_of(w.folder)
        assert (await w.ask("brief")).answer == "short"
        short = [event.name for event in w.events(SandboxEnded)]
        assert kept not in short
        hold.set()
        assert (await long).answer == "done"
