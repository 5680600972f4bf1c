"""`rlm cleanup`: what dead processes left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli import interrupts
from orchestrator.cli.options import json_option
from orchestrator.cli.screen import give, give_json
from orchestrator.cli.services import Services, current

if TYPE_CHECKING:
    from orchestrator.config import Config
    from orchestrator.sandbox.reclaim import Reclaimed


@click.command(short_help="Remove what dead processes left behind.")
@json_option
def cleanup(as_json: bool) -> None:
    """Remove containers, sockets and contexts of processes that are gone, and say what was removed.

    Every start does the same. What belongs to a process that lives is not touched.
    """
    services = current()
    config = services.load({})
    try:
        reclaimed = interrupts.run(lambda: _reclaim(services, config))
    except interrupts.Interrupted as stop:
        raise click.exceptions.Exit(stop.exit_code) from None
    if as_json:
        give_json(
            {
                "containers": list(reclaimed.containers),
                "directories": list(reclaimed.directories),
                "notes": list(reclaimed.notes),
            }
        )
    else:
        give(str(reclaimed) or "Nothing was left behind.")


async def _reclaim(services: Services, config: Config) -> Reclaimed:
    from orchestrator.sandbox.reclaim import reclaim
    from orchestrator.sandbox.state_dir import open_state_dir

    # Without opening the orchestrator: what is left must go even when there is no image to run anything with.
    async with services.engine() as engine:
        return await reclaim(engine, open_state_dir(Path(config.state_dir)))
