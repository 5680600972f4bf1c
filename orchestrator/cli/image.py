"""`rlm image build`: the image that sandboxes are made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

import orchestrator
from orchestrator.cli.exit_codes import ExitCode
from orchestrator.cli.screen import warn
from orchestrator.errors import InvalidInput, SandboxUnavailable


@click.group(short_help="Build the image that sandboxes are made of.")
def image() -> None:
    """Build the image that sandboxes are made of. It is never pulled: this host builds its own."""


@image.command()
@click.argument("variant", type=click.Choice(["full", "slim"]), default="full")
@click.option(
    "--extra",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requirements file: libraries of your own for model-written code.",
)
@click.option("--tag", "tags", multiple=True, metavar="NAME", help="Tag the image so instead. May be repeated.")
@click.option("--no-cache", is_flag=True, help="Do not reuse layers of earlier builds.")
@click.option("--force", is_flag=True, help="Build even if nothing has changed.")
def build(variant: str, extra: Path | None, tags: tuple[str, ...], no_cache: bool, force: bool) -> None:
    """Build it: `full` has libraries for analysis (numpy, pandas, ...), `slim` the standard library only.

    Nothing is done when an image of the same inputs exists.
    """
    script = Path(orchestrator.__file__).resolve().parent.parent / "sandbox_image" / "build.sh"
    if not script.is_file():
        raise SandboxUnavailable(f"{script} is missing.", "Install the package again, or run `make image` in a clone.")
    bash = shutil.which("bash")
    if bash is None:
        raise InvalidInput("PATH", "has no bash, which the build script is written in.", "Install bash.")
    arguments = [bash, str(script), variant]
    if extra is not None:
        arguments += ["--extra", str(extra.resolve())]
    for tag in tags:
        arguments += ["--tag", tag]
    arguments += ["--no-cache"] * no_cache + ["--force"] * force
    environment = {"PYTHON": sys.executable, **os.environ}
    own_uv = Path(sys.executable).with_name("uv")
    if own_uv.is_file():
        environment.setdefault("UV", str(own_uv))
    # In our process group, so that Ctrl-C reaches the script too; it cleans up after itself.
    status = subprocess.run(arguments, env=environment, check=False).returncode
    if status:
        warn("the image was not built; the reason is above.", label="Error")
        raise click.exceptions.Exit(ExitCode.FAILED)
