"""The command group: which commands there are, and what any failure of theirs looks like to a person."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from orchestrator.cli.exit_codes import ExitCode, exit_code_of
from orchestrator.cli.screen import warn
from orchestrator.errors import RLMError

# One file a command; a command is imported when it is used, or listed.
_COMMANDS = {
    "ask": "orchestrator.cli.ask:ask",
    "exec": "orchestrator.cli.exec:exec_",
    "show": "orchestrator.cli.show:show",
    "serve": "orchestrator.cli.serve:serve",
    "runs": "orchestrator.cli.runs:runs",
    "watch": "orchestrator.cli.watch:watch",
    "cancel": "orchestrator.cli.cancel:cancel",
    "import": "orchestrator.cli.importing:import_",
    "token": "orchestrator.cli.token:token",
    "doctor": "orchestrator.cli.doctor:doctor",
    "config": "orchestrator.cli.settings:config",
    "image": "orchestrator.cli.image:image",
    "cleanup": "orchestrator.cli.cleanup:cleanup",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Turns whatever a command raises into one line and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)
        except BrokenPipeError:
            # The reader has gone (`rlm show run.jsonl | head`): nothing is left to say, not even by the interpreter's
            # own flush at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(ExitCode.OK)
        except RLMError as error:
            if _traceback_wanted():
                raise
            warn(str(error), label="Error")
            ctx.exit(exit_code_of(error))
        except Exception as error:
            if _traceback_wanted():
                raise
            warn(f"{type(error).__name__}: {error}", label="Unexpected error")
            warn("This is a bug in rlm. Set RLM_TRACEBACK=1 and run it again for the traceback.", label="")
            ctx.exit(ExitCode.INTERNAL)


def _traceback_wanted() -> bool:
    return os.environ.get("RLM_TRACEBACK", "") not in ("", "0")


def _version() -> str:
    from importlib.metadata import version  # with a reader of e-mail headers

    return version("rlm-orchestrator")


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"rlm {_version()}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show it, exit."
)
def rlm() -> None:
    """Ask questions of contexts that are larger than a model's window.

    The model writes code that looks at the context and calls models on the parts that matter. That code runs in
    containers without a network.

    Settings come from options, the environment and a .env file: see `rlm config`. When something does not work, begin
    with `rlm doctor`.
    """
