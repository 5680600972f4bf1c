"""Options that several commands share, and the settings that they override."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class MemorySize(click.ParamType[int]):
    """`512m`, `2g`, `1536MiB`, or a number of MiB. The value is in MiB."""

    name = "SIZE"
    _UNITS = {"": 1.0, "k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024}  # noqa: RUF012 a table, never changed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\s*", str(value), re.IGNORECASE)
        if not match:
            self.fail(f"{value!r} is not a size. Write it like 512m or 2g.", param, ctx)
        mebibytes = int(float(match[1]) * self._UNITS[match[2].lower()])
        if mebibytes < 1:
            self.fail(f"{value!r} is less than 1 MiB. Write it like 512m or 2g.", param, ctx)
        return mebibytes


# Each option is named for the person, each parameter for the setting that it overrides.
_SANDBOX = (
    click.option("--runtime", metavar="NAME", help="Container runtime, for example runsc."),
    click.option("--memory", "memory_mib", type=MemorySize(), help="Memory of one sandbox, such as 512m or 2g."),
    click.option("--image", metavar="REF", help="The sandbox image: a tag or an ID."),
)
_RUN = (
    click.option("--depth", "max_depth", type=int, metavar="N", help="Depths with a REPL: 1 has plain sub-calls."),
    click.option(
        "--adaptive-depth",
        is_flag=True,
        default=None,
        help="Small sub-calls are plain, also where the depth has REPLs.",
    ),
    click.option("--model", metavar="NAME", help="The root's model."),
    click.option("--sub-model", "recursive_model", metavar="NAME", help="The sub-calls' model."),
    click.option("--max-iterations", type=int, metavar="N", help="Iterations of the root."),
    click.option("--max-cost", "max_cost_usd", type=float, metavar="USD", help="Cost of the whole run, at most."),
    click.option("--max-calls", type=int, metavar="N", help="Model calls of the whole run, at most."),
    click.option("--max-tokens", type=int, metavar="N", help="Tokens of the whole run, at most."),
    click.option("--max-output-tokens", type=int, metavar="N", help="Tokens of one reply, at most."),
    click.option("--max-seconds", type=float, metavar="S", help="Time of the whole run, at most."),
    click.option("--max-concurrent", type=int, metavar="N", help="API requests at a time."),
    click.option("--max-sandboxes", type=int, metavar="N", help="Sandboxes that the whole run may open."),
    click.option("--cell-timeout", "cell_timeout_s", type=float, metavar="S", help="Running time of one cell."),
)


def _all(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


sandbox_options: Callable[[Any], Any] = _all(_SANDBOX)
run_options: Callable[[Any], Any] = _all(_RUN)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
no_color_option = click.option("--no-color", is_flag=True, help="No colors; NO_COLOR does the same.")
server_option = click.option(
    "--server", metavar="ADDRESS", help="A server (RLM_SERVER): unix:/path or host:port. Its token: RLM_TOKEN."
)
