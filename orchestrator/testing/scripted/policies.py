"""Ready policies, each a function that gives a policy, so that they nest:

    route(
        (system_has("REPL"), sequence([
            '```repl\nparts = llm_batch([f"How many errors?\\n\\n{c}" for c in chunks])\n```',
            '```repl\nFINAL(sum(map(int, parts)))\n```',
        ])),
        otherwise=read_text,
    )

All are stateless: what a policy answers depends on the request alone, so any number of conversations may run
at the same time. The one exception is `rendezvous`, whose purpose is to wait for others.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from orchestrator.testing.scripted.chat import ApiError, ChatRequest, Outcome, Policy, Reply, ask

Predicate: TypeAlias = Callable[[ChatRequest], bool]
Step: TypeAlias = str | Outcome | Policy
"""What a script may hold in one place: a text, an outcome, or a policy to ask."""

_DEPTH = re.compile(r"\bdepth\b\W{0,3}(\d+)", re.IGNORECASE)


def as_policy(step: Step) -> Policy:
    """The policy that a step stands for."""
    if isinstance(step, str):
        return constant(step)
    if isinstance(step, Outcome):
        return always(step)
    return step


def always(outcome: Outcome) -> Policy:
    """The same outcome for every request."""
    return lambda request: outcome


def constant(text: str) -> Policy:
    """The same text for every request."""
    return always(Reply(text))


def echo(request: ChatRequest) -> Reply:
    """The last user message, word for word."""
    return Reply(request.last_user)


def sequence(steps: Sequence[Step], *, after: Step | None = None) -> Policy:
    """The nth step for a conversation that holds n assistant turns.

    Progress is read from the messages, so one sequence serves any number of conversations at once, and a
    retry gets the same step again. Past the last step `after` answers; without one it is an error 400 that says so.
    """
    if isinstance(steps, str):
        raise TypeError("sequence() takes a list of steps, not one text: write sequence([text])")
    policies = [as_policy(step) for step in steps]
    last = script_ended(len(policies)) if after is None else as_policy(after)

    async def policy(request: ChatRequest) -> Outcome:
        turn = request.assistant_turns
        return await ask(policies[turn] if turn < len(policies) else last, request)

    return policy


def script_ended(length: int) -> Policy:
    """An error 400 that names the turn for which a script of this length has no step."""

    def policy(request: ChatRequest) -> ApiError:
        return ApiError(
            400,
            f"The script has {length} steps, and the conversation is at turn {request.assistant_turns + 1}. "
            "Add a step, or say what follows the last one with `after`.",
            param="messages",
            code="script_ended",
        )

    return policy


def route(*routes: tuple[Predicate, Step], otherwise: Step) -> Policy:
    """The first step whose predicate holds, else `otherwise`."""
    table = [(predicate, as_policy(step)) for predicate, step in routes]
    default = as_policy(otherwise)

    async def policy(request: ChatRequest) -> Outcome:
        chosen = next((candidate for predicate, candidate in table if predicate(request)), default)
        return await ask(chosen, request)

    return policy


def depth_in_system_prompt(request: ChatRequest) -> int | None:
    """The number after the first word "depth" of the system messages, or None where there is none."""
    found = _DEPTH.search(request.system)
    return int(found.group(1)) if found else None


def by_depth(
    steps: Sequence[Step],
    *,
    leaf: Step,
    depth_of: Callable[[ChatRequest], int | None] = depth_in_system_prompt,
) -> Policy:
    """`steps[d]` for an RLM at depth d, the last of them for any deeper; `leaf` where there is no depth."""
    if isinstance(steps, str) or not steps:
        raise ValueError("by_depth() needs a list with at least one step, for depth 0")
    policies = [as_policy(step) for step in steps]
    plain = as_policy(leaf)

    async def policy(request: ChatRequest) -> Outcome:
        depth = depth_of(request)
        return await ask(plain if depth is None else policies[min(depth, len(policies) - 1)], request)

    return policy


def rendezvous(parties: int, step: Step) -> Policy:
    """Answer only when `parties` requests wait at the same time, then all of them, round after round.

    Proves concurrency without a clock: ten calls made one by one never get past `rendezvous(10, ...)`.
    """
    barrier = asyncio.Barrier(parties)
    inner = as_policy(step)

    async def policy(request: ChatRequest) -> Outcome:
        await barrier.wait()
        return await ask(inner, request)

    return policy


def held_until(event: asyncio.Event, step: Step) -> Policy:
    """Answer once the event is set. The event belongs to the server's own loop."""
    inner = as_policy(step)

    async def policy(request: ChatRequest) -> Outcome:
        await event.wait()
        return await ask(inner, request)

    return policy


def last_user_has(text: str) -> Predicate:
    """Whether the last user message contains the text."""
    return lambda request: text in request.last_user


def last_user_matches(pattern: str) -> Predicate:
    """Whether the regular expression is found in the last user message."""
    compiled = re.compile(pattern)
    return lambda request: compiled.search(request.last_user) is not None


def any_user_has(text: str) -> Predicate:
    """Whether any user message contains the text: stays true as the conversation grows."""
    return lambda request: any(m.role == "user" and text in m.text for m in request.messages)


def system_has(text: str) -> Predicate:
    """Whether the system messages contain the text."""
    return lambda request: text in request.system
