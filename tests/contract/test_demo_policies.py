"""The demo's scripted models write code that comes to the answer that a plain loop computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.demo import policies as demo
from examples.demo.question import announced_version, computed_answer
from orchestrator.testing.scripted import Policy, sequence
from tests.contract.scripted_tree import run

SOURCES = {
    "a.py": "# This was deprecated\n# and will be removed in Python 3.13.\nx = 1\n",
    "b.py": '"""Removed in 3.12."""\n\ndef f():\n    warn("slated for removal in Python 3.12")\n',
    "c.py": "list.remove(x)\n# the item is removed here\n",
    "d.py": "",
    "e.py": "# REMOVED in version 3.9\n",
    "f.py": "pass\n" * 50 + "# removal by 3.12\n",
    "g.py": "nothing = None\n",
}


def _quick() -> dict[str, Policy]:
    """The demo's policies without their latency."""
    return {"root": sequence(demo.ROOT), "part": sequence(demo.PART), "leaf": demo.leaf}


async def test_the_demo_comes_to_the_computed_answer(tmp_path: Path) -> None:
    told = await run(_quick(), SOURCES, tmp_path)
    assert told.answer == computed_answer(SOURCES)
    assert told.answer.splitlines()[0] == "3.12: 3"
    assert told.calls[0] == len(demo.ROOT)
    assert told.calls[1] == 6 * len(demo.PART)
    assert told.sandboxes == 7


async def test_one_passage_more_changes_the_demos_answer(tmp_path: Path) -> None:
    changed = {**SOURCES, "g.py": "# to be removed in 3.99\n"}
    assert (await run(_quick(), changed, tmp_path)).answer == computed_answer(changed)
    assert "3.99: 1" in computed_answer(changed)


@pytest.mark.parametrize(
    ("passage", "version"),
    [
        ("will be removed in Python 3.13.", "3.13"),
        ("slated for removal from v3.14", "3.14"),
        ("removed with no version, since 3.8 it is slow", "none"),
        ("the item is removed here", "none"),
    ],
)
def test_a_passage_is_read_for_the_version_that_it_announces(passage: str, version: str) -> None:
    assert announced_version(passage) == version


def test_every_scripted_model_of_the_demo_has_a_name_of_its_depth() -> None:
    assert list(demo.policies()) == ["scripted-root", "scripted-part", "scripted-leaf"]
