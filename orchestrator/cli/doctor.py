"""`rlm doctor`: is everything there that the other commands need?"""

from __future__ import annotations

from collections.abc import Callable

import click

from orchestrator.cli import interrupts
from orchestrator.cli.checks import Finding, Status, findings
from orchestrator.cli.exit_codes import ExitCode
from orchestrator.cli.options import json_option, no_color_option
from orchestrator.cli.screen import colors, give_json
from orchestrator.cli.services import Services, current
from orchestrator.folds.printable import printable

_MARKS = {Status.OK: ("✓", "green"), Status.WARNING: ("!", "yellow"), Status.FAILED: ("✗", "red")}


@click.command(short_help="Check engine, image, settings and key; say how to mend what is not right.")
@click.option("--online", is_flag=True, help="Also ask the model's API whether it is there and takes the key. Free.")
@click.option("--probe", is_flag=True, help="Also attack a sandbox from inside, as a service does at its start.")
@json_option
@no_color_option
def doctor(online: bool, probe: bool, as_json: bool, no_color: bool) -> None:
    """Check all that the other commands need, and name the fix for each thing that is not right.

    The exit code is 0 when nothing failed, with warnings too.
    """
    services = current()
    colored = colors(no_color, stderr=False)

    def show(finding: Finding) -> None:
        if not as_json:
            click.echo(_line(finding), color=colored)

    try:
        found = interrupts.run(lambda: _collect(services, online, probe, show))
    except interrupts.Interrupted as stop:
        raise click.exceptions.Exit(stop.exit_code) from None
    failed = sum(finding.status is Status.FAILED for finding in found)
    if as_json:
        give_json({"ok": failed == 0, "checks": [_json(finding) for finding in found]})
    elif failed:
        click.echo(f"{failed} to mend.")
    else:
        click.echo("Ready.")
    raise click.exceptions.Exit(ExitCode.FAILED if failed else ExitCode.OK)


async def _collect(services: Services, online: bool, probe: bool, show: Callable[[Finding], None]) -> list[Finding]:
    found = []
    async for finding in findings(services, online=online, probe=probe):
        show(finding)
        found.append(finding)
    return found


def _line(finding: Finding) -> str:
    mark, color = _MARKS[finding.status]
    text = f"{click.style(mark, fg=color, bold=True)} {finding.name:<12} {printable(finding.text)}"
    return f"{text}\n{'':15}→ {printable(finding.remedy)}" if finding.remedy else text


def _json(finding: Finding) -> dict[str, str]:
    return {"name": finding.name, "status": finding.status, "text": finding.text, "remedy": finding.remedy}
