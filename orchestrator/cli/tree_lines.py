"""The call tree as lines of a fixed layout: what to show of it, not how to paint it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from orchestrator.cli import figures
from orchestrator.folds.tree import CallTree, Row, Shape, State

_BAR = 6  # cells of a batch's progress bar


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of a tree to show."""

    active: int = 5  # rows under way beneath one row
    finished: int = 2  # ended rows beneath an RLM
    finished_in_batch: int = 0
    unfold_ended: bool = False  # show what is beneath a row that ended


LIVE = Amount()
WHOLE = Amount(active=1_000, finished=1_000, finished_in_batch=1_000, unfold_ended=True)


@dataclass(frozen=True, slots=True)
class Line:
    branch: str  # the drawn branches to its left
    state: State | None  # None: a note beneath a row
    depth: int | None
    title: str
    detail: str = ""
    doing: str = ""
    tokens: str = ""
    cost: str = ""
    time: str = ""


def lines(tree: CallTree, now: float, amount: Amount = LIVE) -> list[Line]:
    """The whole tree, folded; the clock is the caller's."""
    return [] if tree.root is None else list(_row(tree.root, now, amount, "", ""))


def _row(row: Row, now: float, amount: Amount, branch: str, beneath: str) -> Iterator[Line]:
    # Of a call that was stopped nothing may be known: no figure, rather than a zero.
    known = row.spent.usage.total_tokens or row.spent.cost_usd
    yield Line(
        branch=branch,
        state=row.state,
        depth=row.depth,
        title=row.title,
        detail=row.detail,
        doing=_doing(row),
        tokens=figures.tokens(row.spent.usage.total_tokens) if known else "",
        cost=figures.cost(row.spent) if known else "",
        time=figures.clock(row.seconds(now)),
    )
    if row.state.ended and not amount.unfold_ended:
        return
    children, folded = _children(row, amount)
    last = len(children) - 1
    for index, child in enumerate(children):
        end = index == last and not folded
        yield from _row(child, now, amount, beneath + ("└ " if end else "├ "), beneath + ("  " if end else "│ "))
    if folded:
        yield Line(branch=beneath + "└ ", state=None, depth=None, title=folded)


def _children(row: Row, amount: Amount) -> tuple[list[Row], str]:
    """The rows to show beneath a row, oldest first, and a note on those that are not shown."""
    most_finished = amount.finished_in_batch if row.shape is Shape.BATCH else amount.finished
    finished = list(row.finished)[-most_finished:] if most_finished else []
    active = list(islice(row.active.values(), amount.active))
    hidden = {
        "more under way": len(row.active) - len(active),
        "waiting": len(row.waiting) + _unasked(row),
        "done": row.counts.get(State.DONE, 0) - sum(child.state is State.DONE for child in finished),
        "failed": row.counts.get(State.FAILED, 0) - sum(child.state is State.FAILED for child in finished),
        "canceled": row.counts.get(State.CANCELLED, 0) - sum(child.state is State.CANCELLED for child in finished),
    }
    parts = [f"{number:,} {what}" for what, number in hidden.items() if number > 0]
    return finished + active, " · ".join(parts)


def _unasked(row: Row) -> int:
    """Questions of a batch that nobody has begun with."""
    if row.shape is not Shape.BATCH or row.state.ended:
        return 0
    return max(0, row.size - row.ended_beneath - len(row.active) - len(row.waiting))


def _doing(row: Row) -> str:
    if row.shape is Shape.BATCH:
        failed = row.counts.get(State.FAILED, 0)
        count = f"{row.ended_beneath:,}/{row.size:,}" + (f" ✗{failed:,}" if failed else "")
        return f"{bar(row.ended_beneath, row.size)} {count}"
    turn = f"{row.iteration}/{row.iterations}" if row.iterations and row.iteration else ""
    if row.last_resort and not row.state.ended:
        turn = "last"
    what = {
        State.WAITING: "waiting",
        State.THINKING: "thinking",
        State.RUNNING: "running code",
        State.ASKING: "asking",
        State.DONE: "done",
        State.FAILED: "failed",
        State.CANCELLED: "canceled",
    }[row.state]
    return f"{turn:>5} {what}" if row.shape is Shape.RLM else f"{'':>5} {what}"


def bar(done: int, total: int) -> str:
    filled = _BAR if total <= 0 else min(_BAR, done * _BAR // total)
    return "━" * filled + "╌" * (_BAR - filled)
