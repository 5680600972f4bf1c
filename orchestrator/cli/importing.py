"""`rlm import`: a recording becomes a run of a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import json_option, server_option
from orchestrator.cli.recorded import ask_or_read
from orchestrator.cli.runs import run_json
from orchestrator.cli.screen import give, give_json
from orchestrator.cli.services import current

if TYPE_CHECKING:
    from orchestrator.client.calls import Client
    from orchestrator.store.database import Store
    from orchestrator.views import RunView


@click.command("import", short_help="Take a recording into a server's runs.")
@click.argument("recording", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@server_option
@json_option
def import_(recording: Path, server: str | None, as_json: bool) -> None:
    """Take FILE, which `rlm show --export` or `rlm ask --record` wrote, into the runs of a server.

    It is a run that has ended, to be listed, shown and watched like the server's own. Without --server, of this user's
    server on this machine, or into what the last one has left.
    """

    async def ask(client: Client) -> RunView:
        return await client.import_run(recording)

    def read(store: Store) -> RunView:
        from orchestrator.hosting.run_views import view_of
        from orchestrator.server.tokens import ADMIN_NAME

        return view_of(store.import_jsonl(recording, ADMIN_NAME))

    view = ask_or_read(current(), server, ask, read)
    if as_json:
        give_json(run_json(view))
    else:
        give(f"{view.run_id} {view.state}")
