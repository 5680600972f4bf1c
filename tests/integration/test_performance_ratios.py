"""What must stay quick, as multiples of a floor that is measured in the same moments; the margins are wide.

Absolute times say more about the machine than about the program: there are none here. See docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from benchmarks.floors import EmptyContainers, bare_grpc
from orchestrator.sandbox.context_store import FileContextStore
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.values import Answered, Batch, Slot

ROUNDS, AT_A_TIME = 8, 25
ASK = """\
import time
for n in range({count}):
    began = time.perf_counter()
    llm_query(str(n))
    print(time.perf_counter() - began)
"""


async def test_a_cell_costs_a_few_messages_of_bare_grpc(docker_sandboxes: DockerSandboxes) -> None:
    async with docker_sandboxes.open(None, None) as sandbox, bare_grpc() as bare:
        cell, ping = await in_turns(lambda: sandbox.run("1 + 1"), bare.ping)
    assert cell < 4 * ping  # measured: 1.0 to 1.9


async def test_a_question_costs_a_few_calls_of_bare_grpc(docker_sandboxes: DockerSandboxes) -> None:
    questions: list[float] = []
    calls: list[float] = []
    async with docker_sandboxes.open(None, at_once) as sandbox, bare_grpc() as bare:
        for _ in range(ROUNDS):
            calls += await bare.unary(AT_A_TIME)
            result = await sandbox.run(ASK.format(count=AT_A_TIME))
            questions += map(float, result.stdout.text.split())
    assert statistics.median(questions) < 2 * statistics.median(calls)  # measured: 0.4 to 0.6


async def test_a_cell_costs_the_same_beside_a_large_context(docker_sandboxes: DockerSandboxes) -> None:
    store = FileContextStore(docker_sandboxes.context_dir)
    small, large = await store.put("x" * 1_000), await store.put("x" * 50_000_000)
    async with docker_sandboxes.open(small, None) as one, docker_sandboxes.open(large, None) as other:
        for sandbox, length in ((one, 1_000), (other, 50_000_000)):
            assert (await sandbox.run("print(len(context))")).stdout.text == f"{length}\n"
        with_large, with_small = await in_turns(lambda: other.run("1 + 1"), lambda: one.run("1 + 1"))
    assert with_large < 3 * with_small  # measured: 1.0


async def test_a_warm_sandbox_is_had_in_a_small_part_of_a_start(
    no_leaks: None, sandbox_settings: SandboxSettings, sandbox_image: str
) -> None:
    starts: list[float] = []
    acquires: list[float] = []
    settings = replace(sandbox_settings, pool_min=1, pool_max=1)
    async with DockerSandboxes.start(settings) as sandboxes:
        with closing(EmptyContainers(sandbox_image, sandboxes.context_dir)) as engine:
            while len(acquires) < 4:
                container, seconds = await asyncio.to_thread(engine.start)
                await asyncio.to_thread(engine.remove, container)
                starts.append(seconds)
                while not sandboxes.idle:  # noqa: ASYNC110 - the pool has no event for it
                    await asyncio.sleep(0.02)
                began = time.perf_counter()
                async with sandboxes.open(None, None) as sandbox:
                    acquires.append(time.perf_counter() - began)
                    assert sandbox.warm
    assert statistics.median(acquires) < statistics.median(starts) / 20  # measured: 1 in 1,700


async def test_a_cold_start_is_little_more_than_the_engines_own(
    no_leaks: None, sandbox_settings: SandboxSettings, sandbox_image: str
) -> None:
    empty: list[float] = []
    cold: list[float] = []
    async with DockerSandboxes.start(replace(sandbox_settings, pool_max=0)) as sandboxes:
        with closing(EmptyContainers(sandbox_image, sandboxes.context_dir)) as engine:
            for _ in range(6):
                container, seconds = await asyncio.to_thread(engine.start)
                await asyncio.to_thread(engine.remove, container)
                empty.append(seconds)
                began = time.perf_counter()
                async with sandboxes.open(None, None):
                    cold.append(time.perf_counter() - began)
    assert statistics.median(cold) < 3 * statistics.median(empty)  # measured: 1.1 to 1.2


async def in_turns(one: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """The medians of both, in seconds, measured in turns so that what slows the machine down slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for work, found in zip((one, other), times, strict=True):
            for _ in range(AT_A_TIME):
                began = time.perf_counter()
                await work()
                found.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


async def at_once(batch: Batch) -> Sequence[Slot]:
    return [Answered("yes") for _ in batch.questions]
