"""`rlm cancel`: stops a run of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli import interrupts
from orchestrator.cli.options import json_option, server_option
from orchestrator.cli.runs import run_json
from orchestrator.cli.screen import give, give_json
from orchestrator.cli.services import connected, current

if TYPE_CHECKING:
    from orchestrator.views import RunView


@click.command(short_help="Stop a run of a server.")
@click.argument("run_id", metavar="RUN")
@server_option
@json_option
def cancel(run_id: str, server: str | None, as_json: bool) -> None:
    """Stop RUN: its requests are cancelled and its containers removed before this returns.

    A run that has ended is left as it is.
    """
    services = current()
    address = services.server(server)

    async def ask() -> RunView:
        async with connected(address, services.environ) as client:
            return await client.cancel(run_id)

    view = interrupts.run(ask, stopping="the server is asked no more")
    if as_json:
        give_json(run_json(view))
    else:
        give(f"{view.run_id} {view.state}")
