"""`rlm ask`: a question, what to answer it from, and the answer on stdout."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import figures, interrupts, report
from orchestrator.cli.inputs import FOLDER_NOTE, ContextFormat, Selection, gather, has_unread_input
from orchestrator.cli.options import json_option, no_color_option, run_options, sandbox_options, server_option
from orchestrator.cli.screen import colors, give, give_json, is_terminal, say, warn
from orchestrator.cli.services import Orchestrating, Result, current
from orchestrator.errors import RLMError
from orchestrator.folds.totals import Totals
from orchestrator.folds.tree import CallTree
from orchestrator.values import Ending, Spent

if TYPE_CHECKING:
    from orchestrator.events import Sink

_SKIPPED_SHOWN = 5


@dataclass(slots=True)
class _Watch:
    """How the run is shown, and what is known of it when it ends without an answer."""

    verbose: int
    quiet: bool
    no_color: bool
    totals: Totals = field(default_factory=Totals)
    tree: CallTree = field(default_factory=CallTree)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def spent(self) -> Spent:
        return self.tree.root.spent if self.tree.root else Spent()

    @asynccontextmanager
    async def sinks(self, record_to: Path | None) -> AsyncIterator[Sequence[Sink]]:
        found: list[Sink] = [self.totals, self.tree]
        async with AsyncExitStack() as stack:
            if record_to is not None:
                found.append(stack.enter_context(_recording(record_to)))
            if self.verbose:
                from orchestrator.folds.log_lines import LogSink

                found.append(LogSink())
            elif not self.quiet and is_terminal():
                from orchestrator.cli.live_tree import live_tree, stderr_console

                await stack.enter_async_context(live_tree(self.tree, stderr_console(not colors(self.no_color))))
            elif not self.quiet:
                from orchestrator.cli.progress_lines import ProgressLines

                found.append(ProgressLines(say))
            yield found


@click.command(short_help="Ask a question of files, folders or standard input.")
@click.argument("question")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@run_options
@sandbox_options
@click.option(
    "--context-format",
    type=click.Choice([each.value for each in ContextFormat]),
    default=ContextFormat.AUTO.value,
    show_default=True,
    help="How the code sees the context: str, parsed JSON, list of lines, or bytes.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Of folders, only files like this: '*.py'. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Of folders, no files or folders like this. Repeatable.")
@server_option
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Write all events to this file.")
@click.option("-v", "--verbose", count=True, help="Log lines instead of the live tree; -vv with code and output.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but problems.")
@json_option
@no_color_option
def ask(
    question: str,
    files: tuple[str, ...],
    context_format: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    server: str | None,
    record: Path | None,
    verbose: int,
    quiet: bool,
    as_json: bool,
    no_color: bool,
    **overrides: object,
) -> None:
    """Answer QUESTION from FILE... and print the answer.

    A FILE may be a folder (its text files), a pattern like 'src/**/*.py', or - for standard input. The code sees one
    file as a string, several as a dict from path to text. Without any, the model answers from the question alone.

    The answer goes to stdout, all else to stderr. Press Ctrl-C once to stop cleanly, twice to stop at once.
    """
    watch = _Watch(verbose, quiet or (as_json and not is_terminal()), no_color)

    def unanswered(error: dict[str, Any]) -> None:
        if as_json:
            give_json(report.unanswered_json(error, watch.tree.run_id, watch.seconds, watch.spent, watch.totals))
        elif watch.spent.calls or watch.spent.sandboxes:
            say(f"Spent: {figures.summary(watch.spent)} · {figures.clock(watch.seconds)}")

    try:
        services = current()
        config = services.load(overrides)
        _log_to_stderr(verbose, (config.api_key, *(each.api_key for each in config.endpoints.values())))
        gathered = gather(files, ContextFormat(context_format), Selection(include, exclude))
        if record is not None:
            gathered.refuse_to_overwrite(record)
        if not quiet:
            _tell_skipped(gathered.skipped)
            if not files and has_unread_input():
                say("Note: standard input is not read. Give - in the place of a FILE to have it as the context.")
        opened = services.opened(server, config, overrides)
        result = interrupts.run(lambda: _ask(opened, question, gathered.context, watch, record))
    except RLMError as error:
        unanswered(report.error_json(error))
        raise
    except interrupts.Interrupted as stop:
        unanswered({"type": "Canceled", "message": f"stopped by {stop}", "exit_code": stop.exit_code, "details": {}})
        raise click.exceptions.Exit(stop.exit_code) from None
    if as_json:
        give_json(report.answered_json(result, watch.totals))
    else:
        give(result.answer)
    _tell_end(result, watch, quiet or as_json)


async def _ask(
    opened: AbstractAsyncContextManager[Orchestrating],
    question: str,
    context: object | None,
    watch: _Watch,
    record: Path | None,
) -> Result:
    async with opened as orchestrator:
        for sentence in orchestrator.cleaned:
            warn(sentence, label="Cleaned up")
        async with watch.sinks(record) as sinks:
            return await orchestrator.ask(question, context, sinks=sinks)


@contextmanager
def _recording(path: Path) -> Iterator[Sink]:
    from importlib.metadata import version

    from orchestrator.folds.journal import JournalWriter

    journal = JournalWriter(path, package=version("rlm-orchestrator"))
    try:
        with journal:
            yield journal
    finally:
        if journal.problem:
            warn(journal.problem)


def _log_to_stderr(verbose: int, secrets: Iterable[str | None]) -> None:
    if not verbose:
        return
    from orchestrator.folds.safe_lines import lines_to_stderr

    logger = logging.getLogger("orchestrator")
    logger.handlers = [lines_to_stderr(secrets)]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


def _tell_skipped(skipped: Sequence[str]) -> None:
    # Every project has caches: the ones that a person may wonder about come first.
    ordered = sorted(skipped, key=lambda each: each.endswith(FOLDER_NOTE))
    for each in ordered[:_SKIPPED_SHOWN]:
        say(f"Skipped: {each}")
    if len(ordered) > _SKIPPED_SHOWN:
        say(f"Skipped: {len(ordered) - _SKIPPED_SHOWN:,} more")


def _tell_end(result: Result, watch: _Watch, quiet: bool) -> None:
    if result.ending is Ending.BEST_EFFORT:
        short = watch.tree.root is not None and watch.tree.root.time_short
        what, option = ("time", "--max-seconds") if short else ("iterations", "--max-iterations")
        warn(f"the {what} ran out: this is the model's best answer so far, not a final one. Raise {option} for more.")
    if not quiet:
        iterations = watch.tree.root.iteration if watch.tree.root else 0
        parts = [figures.count(iterations, "iteration")] if iterations else []
        say(" · ".join([*parts, figures.summary(result.spent), figures.clock(result.seconds)]))
