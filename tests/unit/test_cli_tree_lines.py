from __future__ import annotations

import pytest
from rich.console import Console

from orchestrator import events as ev
from orchestrator.cli import figures
from orchestrator.cli.live_tree import render
from orchestrator.cli.tree_lines import WHOLE, bar, lines
from orchestrator.folds.tree import CallTree
from orchestrator.values import Spent, Usage
from tests.unit.sample_runs import Script, whole_run


def _frame(tree: CallTree, now: float, width: int, height: int = 40) -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as capture:
        console.print(render(tree, now, width, height))
    return capture.get().removesuffix("\n").split("\n")


def _large_run(tree: CallTree) -> Script:
    script = Script((tree,))
    script.start("A question that is a good deal longer than the column which it is shown in can hold at any width")
    batch = script.batch(script.cell(script.iteration(script.rlm(script.run))), 1_000)
    for index in range(400):
        query = script.query(batch, index)
        if index < 390:
            script.call(query, model="small")
            script.answer(query, failed=index % 100 == 0)
        else:
            query.child(ev.SpanKind.MODEL).emit(ev.ModelCallStarted("small", ()))
    return script


def test_a_thousand_queries_stay_readable() -> None:
    tree = CallTree()
    script = _large_run(tree)
    found = lines(tree, script.clock.now + 75)
    assert len(found) == 8
    root, batch, *_, note = found
    assert (root.doing, root.time) == (" 1/20 asking", "1:15")
    assert batch.doing == "━━╌╌╌╌ 390/1,000 ✗4"
    assert note.title == "5 more under way · 600 waiting · 386 done · 4 failed"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_columns_are_aligned_at_any_width(width: int) -> None:
    tree = CallTree()
    script = _large_run(tree)
    header, *rows = _frame(tree, script.clock.now, width)
    wide = min(width, 120)
    assert len(header) == wide
    for row in rows[:7]:
        assert len(row.rstrip()) == wide
        assert row.rstrip().endswith("0:00")


def test_a_frame_never_passes_the_terminal() -> None:
    tree = CallTree()
    script = _large_run(tree)
    frame = _frame(tree, script.clock.now, 80, height=7)
    assert len(frame) <= 7
    assert any("4 more rows" in line for line in frame)


def test_streamed_text_has_a_line_of_its_own_without_controls() -> None:
    tree = CallTree()
    script = Script((tree,))
    script.start()
    iteration = script.iteration(script.rlm(script.run))
    before = len(_frame(tree, 1_000.0, 80))
    iteration.emit(ev.ModelTextStreamed("I look \x1b[2Jat it"))
    frame = _frame(tree, 1_000.0, 80)
    assert len(frame) == before
    assert "│ I look at it" in "\n".join(frame)


def test_a_finished_run_is_shown_whole_on_demand() -> None:
    tree = CallTree()
    whole_run(tree)
    assert len(lines(tree, 0.0)) == 1
    whole = lines(tree, 0.0, WHOLE)
    assert [line.depth for line in whole] == [0, 0, 1, 1, 1]
    assert [line.branch for line in whole] == ["", "└ ", "  ├ ", "  ├ ", "  └ "]
    assert "the model failed" in whole[3].detail


def test_an_empty_tree_has_no_lines() -> None:
    assert lines(CallTree(), 0.0) == []


@pytest.mark.parametrize(("done", "total", "expected"), [(0, 6, 0), (3, 6, 3), (6, 6, 6), (9, 6, 6), (0, 0, 6)])
def test_bar(done: int, total: int, expected: int) -> None:
    assert bar(done, total).count("━") == expected
    assert len(bar(done, total)) == 6


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.00k"),
        (9_996, "10.0k"),
        (99_960, "100k"),
        (999_600, "1.00M"),
        (12_345_678, "12.3M"),
        (5_000_000_000, "5.00G"),
    ],
)
def test_tokens_fit_their_column(count: int, text: str) -> None:
    assert figures.tokens(count) == text


def test_costs_say_what_is_not_known() -> None:
    assert figures.cost(Spent()) == "$0"
    assert figures.cost(Spent(calls=1, cost_usd=0.00123)) == "$0.0012"
    assert figures.cost(Spent(calls=2, cost_usd=1.5, unpriced_calls=1)) == "$1.50+"
    assert figures.cost(Spent(calls=1, unpriced_calls=1)) == "unknown"


def test_figures_read_well() -> None:
    assert [figures.clock(seconds) for seconds in (0, 59.9, 61, 3_725)] == ["0:00", "0:59", "1:01", "1:02:05"]
    assert figures.size(2 << 30) == "2.0 GiB"
    assert figures.summary(Spent(calls=1, cached_calls=2, failed_calls=1, usage=Usage(10, 5))) == (
        "1 model call · 1 failed · 2 from the cache · 15 tokens · $0"
    )
