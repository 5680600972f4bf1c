"""The page of the benchmarks, of which parts may be measured anew."""

from __future__ import annotations

import pytest

from benchmarks import page
from benchmarks.registry import Benchmark, Row


async def nothing() -> list[Row]:
    return []


FIRST, SECOND = (Benchmark(name, f"The {name} (1 + 1)", f"How {name}.", nothing, False) for name in ("one", "other"))


def section(benchmark: Benchmark) -> page.Section:
    return page.Section(benchmark, [Row("a thing", (1.0, 3.0, 2.0), "ms", 4.0)], 30.0)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(page, "_machine", lambda: "- a machine")
    return page.page([section(FIRST), section(SECOND)], 0.5, picture=False)


def test_a_page_tells_each_section_and_how_fast_the_machine_was(written: str) -> None:
    assert written.count("\n## ") == 2
    assert "## The other (1 + 1)\n\nHow other.\n\nJust before, a million additions took Python 30 ms." in written
    assert written.count("| a thing | 2.00 ms | 1.00 ms | 3.00 ms |  | 4.00 ms | 0.5 | 3 |") == 2


@pytest.mark.parametrize("which", [FIRST, SECOND])
def test_one_section_measured_anew_leaves_the_others(written: str, which: Benchmark) -> None:
    anew = page.with_sections(written, [page.Section(which, [Row("a thing", (9.0,), "ms")], 31.0)])
    assert anew.count("\n## ") == 2
    assert (anew.count("| a thing | 2.00 ms |"), anew.count("| a thing | 9.00 ms |")) == (1, 1)
    assert page.with_sections(anew, [section(which)]) == written


def test_a_page_of_another_machine_or_without_the_section_is_left(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Benchmark("third", "A third", "How.", nothing, False)
    with pytest.raises(ValueError, match=r"no section 'A third': measure all"):
        page.with_sections(written, [page.Section(other, [], 1.0)])
    monkeypatch.setattr(page, "_machine", lambda: "- the machine beside it")
    with pytest.raises(ValueError, match="of another machine: measure all"):
        page.with_sections(written, [page.Section(FIRST, [], 1.0)])
