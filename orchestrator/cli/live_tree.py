"""The live tree on a terminal: one frame a change, at most some a second, nothing that blinks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from orchestrator.cli.tree_lines import LIVE, Amount, Line, lines
from orchestrator.folds.tree import CallTree, State

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_FRAME_S = 0.125
_WIDEST = 120  # beyond this the eye loses the row
_DOING, _TOKENS, _COST, _TIME = 20, 6, 9, 7  # the last two are mostly shorter, which sets them apart
_GAP = "  "

_SYMBOLS = {
    State.WAITING: ("○", "bright_black"),
    State.THINKING: ("◆", "cyan"),
    State.RUNNING: ("▶", "yellow"),
    State.ASKING: ("◇", "blue"),
    State.DONE: ("✓", "green"),
    State.FAILED: ("✗", "red"),
    State.CANCELLED: ("-", "bright_black"),
}


def stderr_console(no_color: bool) -> Console:
    from rich.console import Console

    # NO_COLOR takes colors away, not the weight of a line.
    return Console(stderr=True, highlight=False, no_color=no_color or None, emoji=False, markup=False)


def render(tree: CallTree, now: float, width: int, height: int | None = None, amount: Amount = LIVE) -> RenderableType:
    """A frame. `height` None shows all; else the lower part is folded into a last line."""
    from rich.console import Group

    width = min(width, _WIDEST)
    if tree.root is None:
        return _note("starting ...", width)
    rows = lines(tree, now, amount)
    painted = [_header(width)]
    room = len(rows) if height is None else max(1, height - 3)
    painted += [_paint(line, width) for line in rows[:room]]
    if len(rows) > room:
        painted.append(_note(f"… {len(rows) - room} more rows; a taller terminal shows them", width))
    if height is not None:
        # Its line is there from the beginning, so that nothing moves when it speaks.
        painted.append(_note(f"│ {tree.root.said}" if tree.root.said else "", width))
    return Group(*painted)


@asynccontextmanager
async def live_tree(tree: CallTree, console: Console, *, clock: Callable[[], float] = time.time) -> AsyncIterator[None]:
    """Paints the tree until the block ends, and then takes it away."""
    from rich.live import Live

    def frame() -> RenderableType:
        return render(tree, clock(), console.width, console.height)

    with Live(frame(), console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:

        async def paint() -> None:
            seen: tuple[int, int, tuple[int, int]] | None = None
            while True:
                now = (tree.changes, int(clock()), (console.width, console.height))
                if now != seen:
                    seen = now
                    live.update(frame(), refresh=True)
                await asyncio.sleep(_FRAME_S)

        painting = asyncio.create_task(paint())
        try:
            yield
        finally:
            painting.cancel()
            await asyncio.wait([painting])


def _header(width: int) -> Text:
    from rich.text import Text

    return Text(_columns("depth and question", "doing", "tokens", "cost", "time", width), style="bright_black")


def _paint(line: Line, width: int) -> Text:
    from rich.text import Text

    if line.state is None:
        text = Text("   " + line.branch, style="bright_black")
        text.append(line.title)
        text.truncate(width, overflow="ellipsis")
        return text
    symbol, color = _SYMBOLS[line.state]
    faded = "bright_black" if line.state in (State.WAITING, State.CANCELLED) else ""
    left = Text(no_wrap=True)
    left.append(f"{line.depth:>2} ", style="bright_black")
    left.append(line.branch, style="bright_black")
    left.append(symbol + " ", style=color)
    room = width - _right_width() - left.cell_len
    left.append_text(_title(line, max(room, 0), faded))
    left.truncate(width - _right_width(), overflow="ellipsis", pad=True)
    left.append(f"{_GAP}{line.doing:<{_DOING}.{_DOING}}", style=faded if faded else color)
    left.append(f"{_GAP}{line.tokens:>{_TOKENS}}{line.cost:>{_COST}}{line.time:>{_TIME}}", style=faded)
    return left


def _title(line: Line, room: int, style: str) -> Text:
    from rich.text import Text

    title = Text(line.title, style=style)
    if not line.detail:
        return title
    detail = Text(f" {line.detail}", style="red" if line.state is State.FAILED else "yellow")
    # What went wrong matters more than the rest of a question.
    title.truncate(max(room - detail.cell_len, room * 2 // 5), overflow="ellipsis")
    return title.append_text(detail)


def _columns(left: str, doing: str, tokens: str, cost: str, time_: str, width: int) -> str:
    wide = max(0, width - _right_width())
    return (
        f"{left:<{wide}.{wide}}{_GAP}{'      ' + doing:<{_DOING}}{_GAP}"
        f"{tokens:>{_TOKENS}}{cost:>{_COST}}{time_:>{_TIME}}"
    )


def _right_width() -> int:
    return _DOING + _TOKENS + _COST + _TIME + 2 * len(_GAP)


def _note(text: str, width: int) -> Text:
    from rich.text import Text

    note = Text("   " + text, style="bright_black", no_wrap=True)
    note.truncate(width, overflow="ellipsis")
    return note
