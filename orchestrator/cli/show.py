"""`rlm show`: a recorded run, for people to read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator import events as ev
from orchestrator.cli import figures
from orchestrator.cli.options import json_option, no_color_option, server_option
from orchestrator.cli.report import batches_json, spent_json
from orchestrator.cli.screen import give, give_json, warn
from orchestrator.cli.services import current
from orchestrator.folds.journal import JournalReader
from orchestrator.folds.printable import printable
from orchestrator.folds.totals import Totals
from orchestrator.folds.tree import CallTree
from orchestrator.values import CellResult, CellStatus

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.cli.recorded import Recorded

_RUN_ID = re.compile(r"run_[0-9A-Za-z]+")
_ROWS_KEPT = 1_000  # of each row's finished rows


@click.command(short_help="Read a recorded run: its tree, its cells, its calls.")
@click.argument("recording", metavar="FILE|RUN")
@click.option("--tree", is_flag=True, help="Only the call tree.")
@click.option("--cells", is_flag=True, help="Only the cells: code and output.")
@click.option("--calls", is_flag=True, help="Only the sub-calls: prompts and answers.")
@click.option("--verify", is_flag=True, help="Replay it: does this release decide alike?")
@server_option
@json_option
@no_color_option
def show(
    recording: str,
    tree: bool,
    cells: bool,
    calls: bool,
    verify: bool,
    server: str | None,
    as_json: bool,
    no_color: bool,
) -> None:
    """Show a run: its tree, every cell, every sub-call.

    It is a file that `rlm ask --record FILE` wrote, or the id of a run that a server has recorded.
    """
    reader = _open(recording, server)
    if verify:
        _verify(reader, as_json)
        return
    everything = not (tree or cells or calls)
    if as_json:
        give_json(_totals_json(reader))
    else:
        if everything or tree:
            _show_tree(reader, no_color)
        if everything or cells or calls:
            # Read anew instead of held in memory: a recording may be as large as the disk.
            _show_steps(reader, cells=everything or cells, calls=everything or calls)
    if reader.cut:
        warn("the last line is torn: whoever wrote this recording was killed.")


def _open(recording: str, server: str | None) -> JournalReader | Recorded:
    if Path(recording).is_file() or not _RUN_ID.fullmatch(recording):
        return JournalReader(_existing(recording))
    from orchestrator.cli.recorded import find

    return find(recording, current(), server)


def _existing(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise click.BadParameter(f"File {file!r} does not exist.", param_hint="'FILE|RUN'")
    return path


def _verify(reader: JournalReader | Recorded, as_json: bool) -> None:
    """Raises `RunNotReplayable` naming the first difference."""
    from orchestrator.rlm.replay import replay

    replayed = len(replay(reader))
    if as_json:
        give_json({"alike": True, "rlms": replayed, "complete": not reader.cut})
    else:
        give(f"Replayed {figures.count(replayed, 'RLM')}: this release decides alike.")


def _show_tree(records: Iterable[ev.Record], no_color: bool) -> None:
    from orchestrator.cli.live_tree import render
    from orchestrator.cli.tree_lines import WHOLE

    folded, ended, last_at = CallTree(keep=_ROWS_KEPT), None, 0.0
    for record in records:
        folded(record)
        last_at = record.at
        if isinstance(record.event, ev.RunEnded):
            ended = record.event
    console = _stdout_console(no_color)
    console.print(render(folded, last_at, console.width, amount=WHOLE))
    if ended is None:
        give("\nThe recording ends before the run did.")
        return
    give(f"\n{folded.run_id} {ended.outcome}: {figures.summary(ended.spent)} · {figures.clock(ended.seconds)}")
    if ended.answer is not None:
        give(f"Answer ({ended.ending}): {ended.answer}")
    if ended.error:
        give(f"Error: {ended.error}")


def _stdout_console(no_color: bool) -> Console:
    from rich.console import Console

    return Console(highlight=False, no_color=no_color or None, emoji=False, markup=False)


def _show_steps(records: Iterable[ev.Record], *, cells: bool, calls: bool) -> None:
    iterations: dict[int, str] = {}  # by span
    codes: dict[int, str] = {}
    prompts: dict[int, ev.QueryStarted] = {}
    for record in records:
        span_id = record.span_id
        match record.event:
            case ev.IterationStarted(number=number, of=of):
                iterations[span_id] = f"iteration {number}/{of}"
            case ev.IterationEnded():
                iterations.pop(span_id, None)
            case ev.CellStarted(code=code) if cells:
                codes[span_id] = code
            case ev.CellEnded() as event if cells:
                where = iterations.get(record.parent_id or 0, "")
                _heading(record.depth, " · ".join(part for part in (where, "cell") if part))
                give(_indented(codes.pop(span_id, "")))
                _show_result(event)
            case ev.QueryStarted() as event if calls:
                prompts[span_id] = event
            case ev.QueryEnded() as event if calls:
                _show_call(record.depth, prompts.pop(span_id, None), event)
            case _:
                pass


def _show_result(event: ev.CellEnded) -> None:
    match event.result:
        case None:
            give(f"  -> {event.outcome}: {event.error}")
        case CellResult() as result:
            for name, captured in (("stdout", result.stdout), ("stderr", result.stderr)):
                if captured.total_bytes:
                    give(f"  {name}, {figures.size(captured.total_bytes)}:")
                    give(_indented(captured.text))
            if result.error:
                give(_indented(result.error.traceback or f"{result.error.type_name}: {result.error.message}"))
            death = f" ({result.death.cause.replace('_', ' ')})" if result.death else ""
            if result.status is not CellStatus.OK or death:
                give(f"  -> {result.status.replace('_', ' ')}{death} after {result.seconds:.2f} s")
            else:
                give(f"  -> ok after {result.seconds:.2f} s")
            if result.final:
                give(f"  -> final answer: {result.final.text}")


def _show_call(depth: int, started: ev.QueryStarted | None, ended: ev.QueryEnded) -> None:
    kind = "sub-RLM" if started is not None and started.recursive else "sub-call"
    index = f" {started.index}" if started is not None else ""
    _heading(depth, f"{kind}{index}")
    if started is not None:
        give(_indented(started.prompt))
    if ended.text is not None:
        give("  ->")
        give(_indented(ended.text))
    else:
        give(f"  -> {ended.failure or ended.outcome}: {ended.error}")


def _heading(depth: int, text: str) -> None:
    give(f"\n[Depth {depth}] {text}")


def _indented(text: str) -> str:
    # In a file too: a recording is read with `less`, and what it quotes is a model's.
    return "\n".join(f"    {line}" for line in printable(text).rstrip("\n").split("\n"))


def _totals_json(reader: JournalReader | Recorded) -> dict[str, object]:
    totals = Totals()
    run: ev.RunStarted | None = None
    ended: ev.RunEnded | None = None
    for record in reader:
        totals(record)
        match record.event:
            case ev.RunStarted() as event:
                run = event
            case ev.RunEnded() as event:
                ended = event
            case _:
                pass
    return {
        "run_id": run.run_id if run else None,
        "query": run.query if run else None,
        "models": list(run.models) if run else [],
        "max_depth": run.max_depth if run else None,
        "version": run.version if run else reader.header.package,
        "outcome": ended.outcome if ended else None,
        "answer": ended.answer if ended else None,
        "ending": ended.ending if ended else None,
        "error": ended.error if ended else None,
        "seconds": round(ended.seconds, 3) if ended else None,
        # The budget's own count, where the recording has it: it is what was billed.
        "spent": spent_json(ended.spent if ended else totals.tree),
        "by_model": {name: spent_json(spent) for name, spent in sorted(totals.by_model.items())},
        "by_depth": {str(depth): spent_json(spent) for depth, spent in sorted(totals.by_depth.items())},
        "by_batch": batches_json(totals.finished_batches),
        "complete": ended is not None and not reader.cut,
    }
