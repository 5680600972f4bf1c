"""A hundred runs at a time through the desk: all end, and nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

from orchestrator.hosting.settings import HostingSettings
from orchestrator.values import Attachment, ContextKind
from orchestrator.views import RunState
from tests.unit.hosting_world import ADMIN, house
from tests.unit.rlm_world import code

RUNS = 100
TEXT = Attachment(ContextKind.TEXT, b"the whole text")


def _descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_a_hundred_runs_at_a_time_all_end_and_leave_nothing(tmp_path: Path) -> None:
    answer = code("print('looking')", "FINAL(len(context))")
    settings = HostingSettings(max_depth=1, max_running=RUNS)
    descriptors = _descriptors()
    async with house(tmp_path, lambda _: answer, settings=settings, capacity=RUNS, max_depth=1) as desk:
        tasks = len(asyncio.all_tasks())
        desk.chat.gate.clear()
        begun = await asyncio.gather(*(desk.start(f"Which, {n}?", context=TEXT) for n in range(RUNS)))
        watching = [asyncio.create_task(desk.seen(run)) for run in begun]
        await desk.chat.until(lambda: desk.chat.in_flight == RUNS)
        assert desk.fakes.open_now == RUNS
        desk.chat.gate.set()
        seen = await asyncio.gather(*watching)
        ended = [await desk.runs.get(run.run_id, principal=ADMIN) for run in begun]
        assert {(run.state, run.answer) for run in ended} == {(RunState.SUCCEEDED, "14")}
        assert len({run.run_id for run in ended}) == RUNS
        assert [len(items) for items in seen] == [run.last_seq for run in ended]
        assert desk.chat.peak_in_flight == RUNS
        assert (desk.fakes.open_now, desk.chat.in_flight, desk.files()) == (0, 0, [])
        assert len(asyncio.all_tasks()) == tasks
    assert _descriptors() == descriptors
