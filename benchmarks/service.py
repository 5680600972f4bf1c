"""A service under load: `rlm serve` as a process of its own, with its store, its metrics and a watcher for each run."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.registry import Row, benchmark
from benchmarks.setting import reply, says, scripted, state_dir
from orchestrator.client.calls import Client

RUNS = 100
_LAG = "rlm_event_loop_lag_seconds"
_SETTLE_S = 5.0


@benchmark("service", "100 runs at a time, through the service")
async def service() -> Sequence[Row]:
    """100 runs are started over gRPC at the same time and each is watched to its end by a stream of its own; the server
    keeps them in its store. Each has one cell that asks one question; every model takes 200 ms. At most 16 sandboxes at
    a time, 8 of them kept warm, so most of the time is the start of 100 containers; held against two model calls. The
    server's resident memory and open descriptors before the first run, at most, and 5 s after the last one, held
    against before (one run has gone through it by then). How late its event loop is comes from its own metric, looked
    at every 250 ms: the share of looks that were less than 25 ms late, and the mean."""
    models = {"root": says(reply('FINAL(llm_query("q"))'), 0.2), "leaf": says("yes", 0.2)}
    with state_dir() as state, scripted(models) as base_url, _served(state, base_url, tuple(models)) as (pid, metrics):
        async with Client(f"unix:{state}/rlm.sock") as client:
            await _run_and_watch(client, "warm up")
            await asyncio.sleep(_SETTLE_S)
            before = _resources(pid)
            lag_before = await asyncio.to_thread(_lag, metrics)
            most = [before]
            sampling = asyncio.create_task(_sample(pid, most))
            began = time.perf_counter()
            seconds = await asyncio.gather(*(_run_and_watch(client, f"Go {n}.") for n in range(RUNS)))
            total = time.perf_counter() - began
            sampling.cancel()
            lag = await asyncio.to_thread(_lag, metrics)
            await asyncio.sleep(_SETTLE_S)
            after = _resources(pid)
    looks = lag["+Inf"] - lag_before["+Inf"]
    in_time = 100 * (lag["0.025"] - lag_before["0.025"]) / looks
    mean = 1e3 * (lag["sum"] - lag_before["sum"]) / looks
    return [
        Row("all of them", (total,), "s", 0.4),
        Row("one run, as its watcher saw it", tuple(seconds), "s", 0.4),
        Row("looks at the event loop less than 25 ms late", (in_time,), "%"),
        Row("lag of the event loop, mean", (mean,), "ms"),
        Row("memory before", (before[0],), "MiB"),
        Row("memory at most", (max(one[0] for one in most),), "MiB", before[0]),
        Row("memory afterwards", (after[0],), "MiB", before[0]),
        Row("descriptors before", (before[1],), ""),
        Row("descriptors at most", (max(one[1] for one in most),), "", before[1]),
        Row("descriptors afterwards", (after[1],), "", before[1]),
    ]


async def _run_and_watch(client: Client, query: str) -> float:
    began = time.perf_counter()
    run = await client.start(query)
    async for _ in client.watch(run.run_id):
        pass
    ended = await client.get(run.run_id)
    assert ended.answer == "yes", ended
    return time.perf_counter() - began


@contextmanager
def _served(state: str, base_url: str, models: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RLM_", "OPENAI_"))}
    settings = {
        "RLM_STATE_DIR": state,
        "RLM_MODELS": ",".join(models),
        "RLM_CAPACITY": "16",
        "RLM_POOL_MIN": "8",
        "RLM_POOL_MAX": "8",
        "RLM_MAX_CONCURRENT": "100",
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "scripted",
    }
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "--metrics", "0"]
    with subprocess.Popen(command, env=kept | settings, stderr=subprocess.PIPE, text=True, cwd=state) as process:
        assert process.stderr is not None
        said = ""
        while "Serving on" not in said or "etrics" not in said:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"the service did not start: {said}")
            said += line
        found = re.search(r"http://\S+", said)
        assert found is not None, said
        try:
            yield process.pid, found[0]
        finally:
            process.send_signal(signal.SIGTERM)


def _resources(pid: int) -> tuple[float, float]:
    """Resident memory in MiB, and open descriptors."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, float(len(os.listdir(f"/proc/{pid}/fd")))


async def _sample(pid: int, found: list[tuple[float, float]]) -> None:
    while True:
        found.append(_resources(pid))
        await asyncio.sleep(0.1)


def _lag(address: str) -> dict[str, float]:
    """The histogram's cumulative counts by bound, and its sum."""
    with urllib.request.urlopen(address) as response:
        text = response.read().decode()
    counts = {found[1]: float(found[2]) for found in re.finditer(rf'{_LAG}_bucket{{le="([^"]+)"}} (\S+)', text)}
    found = re.search(rf"{_LAG}_sum (\S+)", text)
    assert found is not None
    return counts | {"sum": float(found[1])}
