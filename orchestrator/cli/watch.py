"""`rlm watch`: the live tree of a server's run, from anywhere."""

from __future__ import annotations

import re
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from orchestrator.cli import figures, interrupts
from orchestrator.cli.options import json_option, no_color_option, server_option
from orchestrator.cli.runs import run_json
from orchestrator.cli.screen import colors, give, give_json, is_terminal, say
from orchestrator.cli.services import connected, current
from orchestrator.events import RunEnded
from orchestrator.folds.tree import CallTree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.events import Sink
    from orchestrator.views import RunView

    _Seen = tuple[RunView, float | None]  # with how long it took, by its own last event


@click.command(short_help="Watch a run of a server.")
@click.argument("run_id", metavar="RUN")
@click.option("--events", is_flag=True, help="Write its events to stdout instead, as JSON Lines.")
@server_option
@json_option
@no_color_option
def watch(run_id: str, events: bool, server: str | None, as_json: bool, no_color: bool) -> None:
    """Show the tree of RUN while it runs, and print its answer at its end, as `rlm ask` does.

    A lost connection, or a restart of the server, is waited for. Ctrl-C stops the watching, not the run.
    """
    services = current()
    address = services.server(server)
    view, seconds = interrupts.run(
        lambda: _watch(address, services.environ, run_id, events, no_color),
        stopping="the run goes on",
    )
    if events:
        return
    if as_json:
        give_json(run_json(view))
    from orchestrator.client.remote import result_of

    result = result_of(view, seconds)
    if not as_json:
        give(result.answer)
        say(f"{figures.summary(result.spent)} · {figures.clock(result.seconds)}")


async def _watch(address: str, environ: Mapping[str, str], run_id: str, events: bool, no_color: bool) -> _Seen:
    tree = CallTree()
    sinks: list[Sink] = [tree]
    seconds: float | None = None
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(address, environ))
        if events:
            sinks = [_to_stdout]
        elif is_terminal():
            from orchestrator.cli.live_tree import live_tree, stderr_console

            await stack.enter_async_context(live_tree(tree, stderr_console(not colors(no_color))))
        else:
            from orchestrator.cli.progress_lines import ProgressLines

            sinks.append(ProgressLines(say))
        async for record in client.watch(run_id, with_pieces=not events):
            for sink in sinks:
                sink(record)
            if isinstance(record.event, RunEnded):
                seconds = record.event.seconds
        return await client.get(run_id), seconds


def _to_stdout(record: object) -> None:
    import msgspec

    # The encoder leaves all but C0 as it is, and what watches on a terminal obeys C1, DEL and the bidirectional ones.
    text = _NOT_PLAIN.sub(_escaped, msgspec.json.encode(record).decode("utf-8", "replace"))
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


_NOT_PLAIN = re.compile(r"[^\x20-\x7e]")


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
