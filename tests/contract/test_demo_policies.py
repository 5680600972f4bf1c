"""The demo's scripted models write code that comes to the answer that a plain loop computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.demo import policies as demo
from examples.demo import question
from examples.demo.question import announced_version, computed_answer
from orchestrator.cli.inputs import ContextFormat, Selection, gather
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


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in (
        "lib/a.py",
        "lib/pkg/b.py",
        "lib/site-packages/c.py",
        "lib/__pycache__/d.py",
        "lib/e.txt",
        "more/f.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name} is removed in 3.9\n")
    (tmp_path / "lib/latin.py").write_bytes(b"# na\xefve")
    (tmp_path / "lib/nul.py").write_bytes(b"# \0")
    (tmp_path / "lib/link.py").symlink_to(tmp_path / "lib/a.py")
    return tmp_path / "lib"


def test_the_demo_computes_from_what_the_command_reads(library: Path) -> None:
    places = [library, library.parent / "more"]
    selection = Selection(include=("*.py",), exclude=question.EXCLUDED)
    gathered = gather([str(place) for place in places], ContextFormat.AUTO, selection)
    assert question.read_sources(places) == gathered.context
    assert [Path(name).name for name in question.read_sources(places)] == ["a.py", "b.py", "f.py"]


def test_packages_are_read_as_well_where_the_library_is_small(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = library.parent / "more"
    assert question.enough_of(library, packages) == [library, packages]
    monkeypatch.setattr(question, "ENOUGH_BYTES", 10)
    assert question.enough_of(library, packages) == [library]


def test_there_are_tens_of_megabytes_on_this_machine() -> None:
    assert (
        sum(path.stat().st_size for place in question.source_folders() for path in question.python_files(place)) > 2e7
    )


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
