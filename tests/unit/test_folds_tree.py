from __future__ import annotations

from orchestrator import events as ev
from orchestrator.folds.tree import CallTree, Row, Shape, State
from tests.unit.sample_runs import Script, whole_run


def _root(tree: CallTree) -> Row:
    assert tree.root is not None
    return tree.root


def test_a_finished_run_is_one_row_with_all_that_was_spent_beneath_it() -> None:
    tree = CallTree()
    whole_run(tree)
    root = _root(tree)
    assert (root.state, root.iteration, root.spent.calls, root.spent.sandboxes) == (State.DONE, 2, 5, 2)
    (batch,) = root.finished
    assert batch.shape is Shape.BATCH
    assert batch.counts == {State.DONE: 2, State.FAILED: 1}
    assert [row.shape for row in batch.finished] == [Shape.LEAF, Shape.LEAF, Shape.RLM]
    assert batch.finished[2].depth == 1
    assert tree._rows == {}


def test_states_follow_what_happens() -> None:
    tree = CallTree()
    script = Script((tree,))
    script.start()
    root = script.run.child(ev.SpanKind.RLM)
    root.emit(ev.RlmStarted("q", None, 0, 1, 20, "big"))
    assert (_root(tree).state, _root(tree).detail) == (State.WAITING, "for a sandbox")
    iteration = script.iteration(root)
    model = iteration.child(ev.SpanKind.MODEL)
    model.emit(ev.ModelCallStarted("big", ()))
    assert _root(tree).state is State.THINKING
    model.emit(ev.ModelTextStreamed("First.\nSecond \x1b[31mthing"))
    assert _root(tree).said == "Second thing"
    model.emit(ev.ModelRetried(1, 2.0, "429"))
    assert _root(tree).detail == "retry 1 in 2.0 s: 429"
    assert _root(tree).said == ""
    cell = script.cell(iteration)
    assert _root(tree).state is State.RUNNING
    batch = script.batch(cell, 2)
    assert _root(tree).state is State.ASKING
    batch.emit(ev.BatchEnded(ev.Outcome.OK, 0))
    assert _root(tree).state is State.RUNNING


def test_a_batch_of_one_is_its_query() -> None:
    tree = CallTree()
    script = Script((tree,))
    script.start()
    batch = script.batch(script.cell(script.iteration(script.rlm(script.run))), 1)
    query = script.query(batch)
    script.call(query)
    script.answer(query)
    batch.emit(ev.BatchEnded(ev.Outcome.OK, 0))
    (row,) = _root(tree).finished
    assert (row.shape, row.depth, row.state) == (Shape.LEAF, 1, State.DONE)
    assert _root(tree).state is State.RUNNING


def test_queries_wait_until_something_happens_to_them() -> None:
    tree = CallTree()
    script = Script((tree,))
    script.start()
    batch = script.batch(script.cell(script.iteration(script.rlm(script.run))), 3)
    queries = [script.query(batch, index) for index in range(3)]
    (row,) = _root(tree).active.values()
    assert (len(row.waiting), len(row.active)) == (3, 0)
    queries[1].child(ev.SpanKind.MODEL).emit(ev.ModelCallStarted("small", ()))
    assert (len(row.waiting), len(row.active)) == (2, 1)
    script.answer(queries[0], failed=True)  # without a model call: the budget was spent, say
    assert (len(row.waiting), len(row.active), row.counts) == (1, 1, {State.FAILED: 1})


def test_a_large_batch_leaves_counts_and_few_rows() -> None:
    tree = CallTree(keep=5)
    script = Script((tree,))
    script.start()
    batch = script.batch(script.cell(script.iteration(script.rlm(script.run))), 2_000)
    for index in range(2_000):
        query = script.query(batch, index)
        script.call(query, model="small")
        script.answer(query)
    (row,) = _root(tree).active.values()
    assert row.ended_beneath == 2_000
    assert len(row.finished) == 5
    assert row.spent.calls == 2_000
    assert len(tree._rows) < 10


def test_a_plain_run_without_a_repl_has_a_row_too() -> None:
    tree = CallTree()
    script = Script((tree,))
    script.start("2 + 2?")
    script.call(script.run)
    script.end("4", ev.Outcome.FAILED)
    assert (_root(tree).title, _root(tree).state, _root(tree).spent.calls) == ("2 + 2?", State.FAILED, 5)


def test_events_without_a_known_parent_are_ignored() -> None:
    tree = CallTree()
    tree(ev.Record(9, 1.0, 50, 49, ev.SpanKind.CELL, 0, ev.CellStarted("1")))
    assert tree.root is None
