from __future__ import annotations

from orchestrator import events as ev
from orchestrator.folds.totals import Totals
from orchestrator.values import Usage
from tests.unit.sample_runs import Script, whole_run


def test_a_run_adds_up_by_model_depth_and_batch() -> None:
    totals = Totals()
    whole_run(totals)
    assert totals.tree.calls == 5
    assert totals.tree.sandboxes == 2
    assert totals.tree.usage == Usage(500, 100)
    assert {name: spent.calls for name, spent in totals.by_model.items()} == {"big": 2, "small": 3}
    assert {depth: spent.calls for depth, spent in totals.by_depth.items()} == {0: 2, 1: 3}
    (batch,) = totals.finished_batches
    assert (batch.size, batch.failed, batch.spent.calls, batch.spent.sandboxes) == (3, 1, 3, 1)


def test_an_outer_batch_includes_what_inner_ones_spent() -> None:
    totals = Totals()
    script = Script((totals,))
    script.start()
    outer = script.batch(script.cell(script.iteration(script.rlm(script.run))), 2)
    query = script.query(outer, recursive=True)
    inner = script.batch(script.cell(script.iteration(script.rlm(query, 1))), 2)
    script.call(script.query(inner))
    inner.emit(ev.BatchEnded(ev.Outcome.OK, 0))
    outer.emit(ev.BatchEnded(ev.Outcome.OK, 0))
    assert [batch.spent.calls for batch in totals.finished_batches] == [1, 1]


def test_cached_failed_and_unpriced_calls_are_told_apart() -> None:
    totals = Totals()
    script = Script((totals,))
    script.start()
    script.call(script.run, cached=True)
    script.call(script.run, cost=None)
    script.call(script.run, cost=None, usage=None, outcome=ev.Outcome.FAILED)
    spent = totals.tree
    assert (spent.cached_calls, spent.calls, spent.failed_calls, spent.unpriced_calls) == (1, 2, 1, 1)
    assert spent.cost_usd == 0


def test_only_the_latest_batches_are_kept() -> None:
    totals = Totals(batches_kept=2)
    script = Script((totals,))
    script.start()
    for size in (2, 3, 4):
        script.batch(script.run, size).emit(ev.BatchEnded(ev.Outcome.OK, 0))
    assert [batch.size for batch in totals.finished_batches] == [3, 4]
