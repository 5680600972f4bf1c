"""`rlm config`: every setting, its value, and where that comes from."""

from __future__ import annotations

import json
from typing import Any

import click

from orchestrator.cli.options import json_option
from orchestrator.cli.screen import give_json
from orchestrator.cli.services import current
from orchestrator.folds.printable import one_line, printable

_REDACTED = "(set, not shown)"
_DEFAULT = "default"


@click.command(short_help="Show every setting, its value and where it comes from.")
@json_option
def config(as_json: bool) -> None:
    """Show every setting with its variable, its value and where that comes from. The key is never shown.

    A setting is looked for in a command's options, the environment, and the file .env of the current folder.
    """
    from orchestrator.config import Config, describe

    services = current()
    loaded = services.load({})
    origins = Config.origins({}, environ=services.environ, dotenv=services.dotenv)
    rows = [
        {
            "name": setting.name,
            "variable": setting.variable,
            "value": _shown(setting.name, getattr(loaded, setting.name)),
            "origin": origins.get(setting.name, _DEFAULT),
            "help": setting.text,
        }
        for setting in describe()
    ]
    if as_json:
        give_json({"settings": rows})
        return
    wide_variable = max(len(row["variable"]) for row in rows)
    for row in rows:
        value = row["value"] if isinstance(row["value"], str) else json.dumps(row["value"])
        value = "-" if row["value"] is None else value
        set_here = row["origin"] != _DEFAULT
        line = f"{row['variable']:<{wide_variable}}  {one_line(value, 60)}"
        click.echo(click.style(line, bold=set_here))
        click.echo(f"{'':<{wide_variable}}  {row['help']}" + (f" ({printable(row['origin'])})" if set_here else ""))


def _shown(name: str, value: Any) -> Any:
    import msgspec

    if name == "api_key":
        return _REDACTED if value else None
    # An endpoint of a model has a key of its own, and an address may carry one.
    return _without_secrets(msgspec.to_builtins(value))


def _without_secrets(value: Any) -> Any:
    match value:
        case dict():
            return {
                name: _REDACTED if "key" in str(name).lower() and inner else _without_secrets(inner)
                for name, inner in value.items()
            }
        case list():
            return [_without_secrets(inner) for inner in value]
        case str() if "://" in value and "@" in value:
            scheme, _, rest = value.partition("://")
            return f"{scheme}://{_REDACTED}@{rest.rpartition('@')[2]}"
        case _:
            return value
