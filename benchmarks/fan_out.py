"""Sub-calls that do not depend on one another: how near to the ideal is a batch, and a tree of batches?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import openai

from benchmarks.registry import Row, benchmark, repeats
from benchmarks.setting import orchestrator_with, pool_is_full, reply, says, timed
from orchestrator.config import Config

REPEATS = 4
BATCH = """\
import time
began = time.monotonic()
answers = llm_batch([f"q{n}" for n in range(20)], max_concurrent=10)
FINAL(time.monotonic() - began)
"""
PARTS, THINKING_S = 2, 0.5


@benchmark("fan-out", "20 sub-calls of 1 s, 10 at a time")
async def fan_out() -> Sequence[Row]:
    """The scripted model takes 1 s for each answer. Timed by the code itself, inside its container, around one
    `llm_batch` of 20 prompts with max_concurrent=10; the ideal is ceil(20 / 10) x 1 s."""
    models = {
        "root": says(reply(BATCH)),
        "leaf": says("yes", 1.0),
    }
    async with orchestrator_with(models) as orchestrator:
        samples = [float((await orchestrator.ask("Go.")).answer) for _ in range(REPEATS)]
    return [Row("llm_batch in a container", tuple(samples), "s", 2.0)]


LARGE_BATCH = """\
import time
began = time.monotonic()
answers = llm_batch([f"q{n}" for n in range(1000)], max_concurrent=100)
FINAL(time.monotonic() - began)
"""


@benchmark("batch", "A batch of 1,000 sub-calls of 200 ms, 100 at a time", core=True)
async def batch() -> Sequence[Row]:
    """As above, with max_concurrent=100 for the batch and for the orchestrator, over real HTTP connections to the
    scripted server, which has a process of its own; held against the ideal, 1000 / 100 x 0.2 s. Beside it AsyncOpenAI
    alone, 100 tasks at a time, in the orchestrator's process, as its documents say."""
    models = {
        "root": says(reply(LARGE_BATCH)),
        "leaf": says("yes", 0.2),
    }
    async with orchestrator_with(models, max_concurrent=100, cache_mib=0) as orchestrator:
        samples, alone = [], []
        for _ in range(repeats(REPEATS)):
            samples.append(float((await orchestrator.ask("Go.")).answer))
            alone.append(await timed(lambda: _sdk_alone(orchestrator.config)))
    return [
        Row("llm_batch of 1,000", tuple(samples), "s", 2.0),
        Row("the SDK alone", tuple(alone), "s", 2.0),
    ]


async def _sdk_alone(config: Config) -> None:
    at_a_time = asyncio.Semaphore(100)
    async with openai.AsyncOpenAI(api_key=config.api_key, base_url=config.base_url) as client:

        async def call(n: int) -> None:
            async with at_a_time:
                await client.chat.completions.create(model="leaf", messages=[{"role": "user", "content": f"q{n}"}])

        await asyncio.gather(*(call(n) for n in range(1000)))


@benchmark("leaves", "A tree of depth 2 with 1, 8 and 64 leaves")
async def leaves() -> Sequence[Row]:
    """The root asks one batch of 1, 8 or 64 sub-calls, each of which is an RLM with a sandbox of its own that answers
    at once from its first cell; each model takes 0.5 s. Held against the critical path, 2 x 0.5 s. With a warm pool
    that has a sandbox for each, and for 64 leaves with room for 17 and 9 kept warm as well: there most wait for room,
    and for a cold start on two processors."""
    rows = []
    for count, warm, room in ((1, 2, 2), (8, 9, 9), (64, 65, 65), (64, 9, 17)):
        root = f"FINAL(len(llm_batch([str(n) for n in range({count})], max_concurrent={count})))"
        models = {
            "root": says(reply(root), THINKING_S),
            "child": says(reply("FINAL(1)"), THINKING_S),
            "leaf": says("yes"),
        }
        pool = {"pool_min": warm, "pool_max": warm, "capacity": room, "max_concurrent": 100}
        async with orchestrator_with(models, max_depth=2, **pool) as orchestrator:
            samples = []
            for _ in range(2):
                await pool_is_full(orchestrator, warm)
                samples.append(await timed(lambda: orchestrator.ask("Go.", "x")))
        what = f"{count} leaves" + ("" if room > count else f", room for {room}")
        rows.append(Row(what, tuple(samples), "s", 2 * THINKING_S))
    return rows


@benchmark("tree", "A tree of depth 3 beside its critical path", core=True)
async def tree() -> Sequence[Row]:
    """Three levels of REPLs, each of which asks 2 sub-calls of the next at once: 7 sandboxes, 15 model calls. Each
    model takes 0.5 s, so the longest chain of calls is 4 x 0.5 s = 2 s; what is above it are containers and transport.
    With a warm pool, which is full before each run, a
    sandbox is there when it is asked for."""
    code = reply(f"FINAL(' '.join(llm_batch([context + str(n) for n in range({PARTS})])))")
    models = {
        "root": says(code, THINKING_S),
        "child": says(code, THINKING_S),
        "grandchild": says(code, THINKING_S),
        "leaf": says("yes", THINKING_S),
    }
    rows = []
    for what, pool in (("no pool", {"pool_max": 0}), ("8 kept warm", {"pool_min": 8, "pool_max": 8})):
        async with orchestrator_with(models, max_depth=3, **pool) as orchestrator:
            await orchestrator.ask("Go.", "x")  # connections are open
            samples = []
            for _ in range(repeats(REPEATS)):
                if pool["pool_max"]:
                    await pool_is_full(orchestrator, pool["pool_max"])
                samples.append(await timed(lambda: orchestrator.ask("Go.", "x")))
        rows.append(Row(what, tuple(samples), "s", 4 * THINKING_S))
    return rows
