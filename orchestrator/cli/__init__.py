"""The `rlm` command. Nothing heavy is imported before a command needs it: `rlm --help` answers at once."""

from __future__ import annotations


def main() -> None:
    """The console script."""
    import sys

    from orchestrator.cli.command import rlm
    from orchestrator.cli.garbage import collect_less_often

    collect_less_often()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not cost the user an answer that was paid for.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    rlm.main(prog_name="rlm")
