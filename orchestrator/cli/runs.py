"""`rlm runs`: what a server has run and runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import figures
from orchestrator.cli.options import json_option, server_option
from orchestrator.cli.recorded import ask_or_read
from orchestrator.cli.report import spent_json
from orchestrator.cli.screen import give, give_json
from orchestrator.cli.services import current
from orchestrator.errors import InvalidInput
from orchestrator.folds.printable import one_line

if TYPE_CHECKING:
    from orchestrator.client.calls import Client
    from orchestrator.store.database import Store
    from orchestrator.views import Page, RunView

_STATES = ("running", "succeeded", "failed", "cancelled", "interrupted")


@click.command(short_help="List the runs of a server.")
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES), help="Only such runs. Repeatable.")
@click.option("--session", "session_id", metavar="ID", help="Only runs of this session.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only runs with it. Repeatable.")
@click.option("--since", type=click.FloatRange(min=0), metavar="HOURS", help="Only runs started since then.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N", help="At most.")
@server_option
@json_option
def runs(
    states: tuple[str, ...],
    session_id: str | None,
    labels: tuple[str, ...],
    since: float | None,
    limit: int,
    server: str | None,
    as_json: bool,
) -> None:
    """List the runs of a server, the newest first.

    Without --server, those of this user on this machine: of the server, or what the last one has left.
    """
    from orchestrator.views import Page, RunState

    wanted = frozenset(RunState(each) for each in states)
    named = dict(_label(each) for each in labels)
    after = None if since is None else time.time() - since * 3600

    async def ask(client: Client) -> Page[RunView]:
        return await client.list(
            page_size=limit, states=wanted, session_id=session_id, labels=named, started_after=after
        )

    def read(store: Store) -> Page[RunView]:
        from orchestrator.hosting.run_views import view_of
        from orchestrator.store.rows import RunFilter

        of = RunFilter(principal=None, states=wanted, session_id=session_id, labels=named, started_after=after)
        found = store.list_runs(of, limit)
        return Page(tuple(view_of(run) for run in found.items), found.next_token)

    page = ask_or_read(current(), server, ask, read)
    if as_json:
        give_json({"runs": [run_json(view) for view in page.items], "more": bool(page.next_token)})
        return
    for view in page.items:
        give(_line(view))
    if not page.items:
        give("No runs.")


def run_json(view: RunView) -> dict[str, Any]:
    """The stable form that `--json` promises."""
    return {
        "run_id": view.run_id,
        "state": view.state,
        "query": view.query,
        "model": view.settings.model_at(0),
        "labels": dict(view.labels),
        "principal": view.principal,
        "session_id": view.session_id,
        "started_at": view.started_at,
        "ended_at": view.ended_at,
        "answer": view.answer,
        "ending": view.ending,
        "error": {"reason": view.problem.reason, "message": view.problem.message} if view.problem else None,
        "spent": spent_json(view.spent),
    }


def _line(view: RunView) -> str:
    seconds = (view.ended_at or time.time()) - view.started_at
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(view.started_at))
    figure = f"{figures.clock(max(seconds, 0)):>7} {figures.cost(view.spent):>8}"
    return f"{view.run_id}  {started}  {view.state:<11} {figure}  {one_line(view.query, 60)}"


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidInput("--label", f"is NAME=VALUE; it is {text!r}.")
    return name, value
