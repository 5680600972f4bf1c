"""`rlm token`: who may call a server."""

from __future__ import annotations

import os
from pathlib import Path

import click

from orchestrator.cli.screen import give, say
from orchestrator.errors import InvalidInput


@click.group(short_help="Make tokens for callers of a server.")
def token() -> None:
    """Make tokens for callers of `rlm serve --tokens FILE`."""


@token.command("new", short_help="Make a token.")
@click.argument("name")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), help="Append the entry to this file.")
@click.option("--max-runs", type=click.IntRange(min=1), metavar="N", help="Runs at a time.")
@click.option("--max-sandboxes", type=click.IntRange(min=1), metavar="N", help="Kept sandboxes at a time.")
@click.option("--max-cost", "max_cost_usd", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="Ever.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Ever, input and output.")
@click.option("--max-stored-mib", type=click.IntRange(min=1), metavar="N", help="Kept runs and uploads together.")
@click.option("--admin", is_flag=True, help="Sees and may cancel what others started.")
def new(
    name: str,
    file: Path | None,
    max_runs: int | None,
    max_sandboxes: int | None,
    max_cost_usd: float | None,
    max_tokens: int | None,
    max_stored_mib: int | None,
    admin: bool,
) -> None:
    """Print a new token for NAME, once, and the entry for the server's file of tokens.

    The server knows only the token's hash: nobody can tell the token again.
    """
    from orchestrator.server.tokens import Entry, as_toml, check_name, hash_of, new_token

    check_name(name)
    secret = new_token()
    stored = max_stored_mib * 1024 * 1024 if max_stored_mib is not None else None
    entry = as_toml(Entry(name, hash_of(secret), max_runs, max_sandboxes, max_cost_usd, max_tokens, stored, admin))
    if file is None:
        give(f"{secret}\n\n{entry}")
        say("The first line is the token: give it to its owner. The rest goes into the server's --tokens file.")
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as out:
            out.write(f"\n{entry}")
    except OSError as error:
        raise InvalidInput("--file", f"{file} cannot be written: {error.strerror}.") from error
    give(secret)
    say(f"Its entry is in {file}: restart the server to have it known.")
