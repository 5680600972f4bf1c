"""Faults of the model's API, through the whole stack: retried where that helps, else one slot's error."""

from __future__ import annotations

import json

import pytest

from orchestrator.errors import ModelFailed, ModelFailure
from orchestrator.events import BatchEnded, BatchStarted, ModelRetried
from orchestrator.testing.scripted import (
    Disconnect,
    Policy,
    always,
    client_error,
    constant,
    first_attempts,
    on,
    rate_limited,
    respond,
    route,
    server_error,
    with_faults,
)
from orchestrator.testing.scripted.policies import echo, last_user_has
from tests.integration.e2e_world import reply, world

pytestmark = pytest.mark.docker

ASK_FOUR = """
import json

found = llm_batch(["a", "b", "bad", "d"])
FINAL(json.dumps([[str(f), getattr(f, "failed", False), getattr(f, "reason", "")] for f in found]))
"""


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (respond(rate_limited(retry_after="0")), "rate_limited"),
        (respond(server_error(500)), "server"),
        (respond(Disconnect()), "connection"),
    ],
)
async def test_a_passing_fault_is_retried_at_every_depth_and_nobody_notices(fault: object, says: str) -> None:
    def once(policy: Policy) -> Policy:
        return with_faults(policy, on(first_attempts(1), fault))  # type: ignore[arg-type]

    policies: dict[str, Policy] = {
        "depth-0": once(constant(reply("FINAL(llm_query('go down'))"))),
        "depth-1": once(constant(reply("FINAL(llm_query('say it'))"))),
        "leaf": once(echo),
    }
    async with world(policies) as w:
        result = await w.ask()
        assert result.answer == "say it"
        assert [w.asked(name) for name in policies] == [2, 2, 2]
        retried = w.events(ModelRetried)
        assert [retry.attempt for retry in retried] == [1, 1, 1]
        assert all(says in retry.reason for retry in retried)


async def test_a_failing_leaf_is_an_error_in_its_own_slot() -> None:
    leaf = route((last_user_has("bad"), always(client_error(400))), otherwise=echo)
    async with world({"depth-0": constant(reply(ASK_FOUR)), "leaf": leaf}) as w:
        a, b, bad, d = json.loads((await w.ask()).answer)
        assert [a, b, d] == [["a", False, ""], ["b", False, ""], ["d", False, ""]]
        assert bad[0].startswith("Error: ")
        assert bad[1:] == [True, "model"]
        assert [end.failed for end in w.events(BatchEnded)] == [1]


async def test_a_failing_child_is_an_error_in_its_own_slot() -> None:
    child = route((last_user_has("bad"), always(client_error(400))), otherwise=reply("FINAL(context)"))
    policies: dict[str, Policy] = {"depth-0": constant(reply(ASK_FOUR)), "depth-1": child, "leaf": echo}
    async with world(policies) as w:
        a, b, bad, d = json.loads((await w.ask()).answer)
        assert [a[0], b[0], d[0]] == ["a", "b", "d"]
        assert bad[1:] == [True, "model"]


async def test_a_server_that_never_answers_well_fails_slots_and_no_batch() -> None:
    async with world({"depth-0": constant(reply(ASK_FOUR)), "leaf": always(server_error(500))}, max_attempts=1) as w:
        slots = json.loads((await w.ask()).answer)
        assert [failed for _, failed, _ in slots] == [True] * 4
        assert [end.failed for end in w.events(BatchEnded)] == [4]


async def test_a_root_that_cannot_ask_its_model_fails_the_run() -> None:
    async with world({"depth-0": always(client_error(401)), "leaf": echo}) as w:
        with pytest.raises(ModelFailed) as raised:
            await w.ask()
        assert raised.value.kind is ModelFailure.AUTHENTICATION
        assert w.asked("depth-0") == 1


async def test_duplicates_are_asked_once_and_answered_everywhere() -> None:
    code = "FINAL(','.join(llm_batch(['a', 'b', 'a', 'a', 'b', 'c'])))"
    async with world({"depth-0": constant(reply(code)), "leaf": echo}) as w:
        assert (await w.ask()).answer == "a,b,a,a,b,c"
        assert w.asked("leaf") == 3
        assert [batch.distinct for batch in w.events(BatchStarted)] == [3]
