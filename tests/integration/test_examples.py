"""The programs that the documents name, as a person starts them, with scripted models and real containers."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(state_dir: Path, tmp_path: Path) -> dict[str, str]:
    """That of somebody without a key; the folder that the program runs in has no .env either."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return kept | {"PYTHONPATH": str(ROOT), "RLM_STATE_DIR": str(state_dir), "NO_COLOR": "1"}


async def started(environment: dict[str, str], folder: Path, *command: str) -> tuple[str, str]:
    """What it says on stdout and stderr, once it has ended well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = (each.decode() for each in await process.communicate())
    assert process.returncode == 0, stderr
    return stdout, stderr


async def test_the_demo_comes_to_the_computed_answer_and_leaves_a_record(
    environment: dict[str, str], tmp_path: Path
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for number in range(12):
        (library / f"m{number}.py").write_text(f"x = {number}\n# to be removed in Python 3.{number % 3 + 12}\n")
    # Only what the demo reads is another: a whole standard library takes half a minute.
    few = (
        "import runpy; from pathlib import Path; from examples.demo import question; "
        f"question.source_folders = lambda: [Path({str(library)!r})]; "
        "runpy.run_module('examples.demo', run_name='__main__', alter_sys=True)"
    )
    stdout, stderr = await started(environment | {"RLM_DEMO_MODEL": "scripted"}, tmp_path, "-c", few)
    assert stdout == "3.12: 4\n3.13: 4\n3.14: 4\n"
    assert "the same answer." in stderr
    assert re.search(r"Model calls by depth: 0: 3, 1: 12, 2: \d+", stderr)
    record = ".build/demo/run.jsonl"
    shown, _ = await started(environment, tmp_path, "-m", "orchestrator.cli", "show", record, "--verify")
    assert "this release decides alike" in shown


async def test_the_needle_is_found_in_a_million_lines(environment: dict[str, str], tmp_path: Path) -> None:
    stdout, stderr = await started(environment, tmp_path, "-m", "examples.needle")
    assert f"It is '{stdout.strip()}'" in stderr


async def test_a_batch_is_faster_than_a_loop(environment: dict[str, str], tmp_path: Path) -> None:
    quick = (
        "from examples import batch_vs_sequential as e; policies = e.policies; "
        "e.policies = lambda: policies(0.05); raise SystemExit(e.main())"
    )
    stdout, _ = await started(environment, tmp_path, "-c", quick)
    assert re.search(r"20 x llm_query, one after the other +\d+\.\d\d s", stdout)
    times = re.search(r"that is (\d+\.\d) times as fast", stdout)
    assert times is not None
    assert float(times[1]) > 1


async def test_both_depths_count_the_ships(environment: dict[str, str], tmp_path: Path) -> None:
    stdout, _ = await started(environment, tmp_path, "-m", "examples.depths")
    assert re.findall(r"depth (\d): (\d+) ships \((\d+) by a plain loop\)", stdout) == [
        (depth, lost, lost)
        for depth, lost in zip("23", [re.search(r"\((\d+) by", stdout)[1]] * 2, strict=True)  # type: ignore[index]
    ]
    assert "depth 2:   1 model calls" not in stdout
