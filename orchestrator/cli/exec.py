"""`rlm exec`: untrusted Python in a sandbox, without a model."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import click

from orchestrator.cli import interrupts
from orchestrator.cli.exit_codes import ExitCode, exit_code_of
from orchestrator.cli.inputs import ContextFormat, gather
from orchestrator.cli.options import json_option, sandbox_options, server_option
from orchestrator.cli.report import error_json
from orchestrator.cli.screen import give_json, is_terminal, say, warn
from orchestrator.cli.services import Orchestrating, current
from orchestrator.errors import InvalidInput, RLMError
from orchestrator.folds.printable import printable
from orchestrator.values import Captured, CellResult, CellStatus, CodeError, OutputChunk, OutputStream


class Relay:
    """Hands a cell's output on as it comes, and tells of what did not come."""

    def __init__(self) -> None:
        self._next = dict.fromkeys(OutputStream, 0)
        self._line_open = dict.fromkeys(OutputStream, False)

    def __call__(self, chunk: OutputChunk) -> None:
        missing = chunk.offset - self._next[chunk.stream]
        if missing > 0:
            self._write(chunk.stream, f"\n[... {missing:,} bytes left out ...]\n")
        self._next[chunk.stream] = chunk.offset + len(chunk.text.encode("utf-8", "replace"))
        self._write(chunk.stream, chunk.text)

    def finish(self, stream: OutputStream, captured: Captured) -> None:
        """A sandbox that streams nothing still gave its result."""
        if self._next[stream] == 0 and captured.total_bytes:
            self._write(stream, captured.text)
        if self._line_open[stream] and is_terminal(stderr=stream is OutputStream.STDERR):
            self._write(stream, "\n")

    def _write(self, stream: OutputStream, text: str) -> None:
        if not text:
            return
        on_stderr = stream is OutputStream.STDERR
        if is_terminal(stderr=on_stderr):
            text = printable(text)
        out = sys.stderr if on_stderr else sys.stdout
        out.write(text.encode("utf-8", "replace").decode("utf-8"))
        out.flush()
        self._line_open[stream] = not text.endswith("\n")


@click.command("exec", short_help="Run untrusted Python in a sandbox, without a model.")
@click.argument("file", metavar="FILE")
@click.option("--context", "context_file", metavar="FILE", help="What the code finds as `context`.")
@click.option(
    "--context-format",
    type=click.Choice([each.value for each in ContextFormat]),
    default=ContextFormat.AUTO.value,
    show_default=True,
    help="How the code sees it.",
)
@click.option("--timeout", "cell_timeout_s", type=float, metavar="S", help="Running time of the code, at most.")
@sandbox_options
@server_option
@json_option
def exec_(
    file: str,
    context_file: str | None,
    context_format: str,
    server: str | None,
    as_json: bool,
    **overrides: object,
) -> None:
    """Run the Python in FILE (- is standard input) in a fresh container without a network.

    Its output comes as it is written. The exit code is 0 when it ran to its end, 1 when it raised, 124 when its time
    was over, 9 when its process died.
    """
    try:
        config = current().load(overrides)
        if file == context_file == "-":
            raise InvalidInput("-", "standard input can be read once only.", "Give the code or the context as a file.")
        code = _read_code(file)
        context = gather([context_file], ContextFormat(context_format)).context if context_file else None
        opened = current().opened(server, config, overrides)
        # A server has a limit of its own, which counts unless one is asked for.
        limit_s = (
            config.cell_timeout_s
            if current().named(server) is None or overrides["cell_timeout_s"] is not None
            else None
        )
        result = interrupts.run(lambda: _run(opened, code, context, limit_s, None if as_json else Relay()))
    except RLMError as error:
        if as_json:
            give_json({"status": None, "exit_code": int(exit_code_of(error)), "error": error_json(error)})
        raise
    except interrupts.Interrupted as stop:
        raise click.exceptions.Exit(stop.exit_code) from None
    exit_code = code_of(result)
    if as_json:
        give_json(result_json(result, exit_code))
    elif result.status is not CellStatus.OK:
        _explain(result, config.cell_timeout_s)
    raise click.exceptions.Exit(exit_code)


async def _run(
    opened: AbstractAsyncContextManager[Orchestrating],
    code: str,
    context: object | None,
    limit_s: float | None,
    relay: Relay | None,
) -> CellResult:
    async with opened as orchestrator:
        for sentence in orchestrator.cleaned:
            warn(sentence, label="Cleaned up")
        async with orchestrator.sandbox(context) as sandbox:
            result = await sandbox.run(code, relay, time_limit_s=limit_s)
            if relay:
                relay.finish(OutputStream.STDOUT, result.stdout)
                relay.finish(OutputStream.STDERR, result.stderr)
            return result


def _read_code(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise InvalidInput(file, f"cannot be read: {error.strerror}.", "Give a file of Python code, or -.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(file, "is not UTF-8 text.", "Give a file of Python code.") from error


def code_of(result: CellResult) -> ExitCode:
    match result.status:
        case CellStatus.OK:
            return ExitCode.OK
        case CellStatus.ERROR:
            # sys.exit() and sys.exit(0) are how a script ends well.
            well = result.error and result.error.type_name == "SystemExit" and result.error.message in ("", "0", "None")
            return ExitCode.OK if well else ExitCode.FAILED
        case CellStatus.TIMED_OUT:
            return ExitCode.CODE_TIMED_OUT
        case CellStatus.INTERRUPTED:
            return ExitCode.INTERRUPTED
        case CellStatus.WORKER_DIED:
            return ExitCode.WORKER_DIED


def _explain(result: CellResult, limit_s: float) -> None:
    if result.error is not None and (traceback := _told_of(result.error)):
        say(traceback.rstrip("\n"))
    match result.status:
        case CellStatus.TIMED_OUT:
            warn(f"the code was interrupted after cell_timeout_s={limit_s:g} s. Raise --timeout.", label="Error")
        case CellStatus.WORKER_DIED if result.death is not None:
            cause = result.death.cause.replace("_", " ")
            code = f" ({result.death.code})" if result.death.code else ""
            remedy = " Raise --memory." if result.death.cause == "out_of_memory" else ""
            warn(f"the process that ran the code died: {cause}{code}.{remedy}", label="Error")
        case _:
            pass


def _told_of(error: CodeError) -> str:
    """What Python itself would print of it: of a sys.exit() its message, if that is not a number."""
    if error.type_name != "SystemExit":
        return error.traceback or f"{error.type_name}: {error.message}"
    return "" if error.message in ("", "None") or error.message.lstrip("-").isdecimal() else error.message


def result_json(result: CellResult, exit_code: ExitCode) -> dict[str, Any]:
    """The stable form that `--json` promises."""

    def stream(captured: Captured) -> dict[str, Any]:
        return {"text": captured.text, "bytes": captured.total_bytes, "omitted_bytes": captured.omitted_bytes}

    error = result.error
    return {
        "status": result.status,
        "exit_code": int(exit_code),
        "stdout": stream(result.stdout),
        "stderr": stream(result.stderr),
        "code_error": {"type": error.type_name, "message": error.message, "traceback": error.traceback}
        if error
        else None,
        "death": {"cause": result.death.cause, "code": result.death.code} if result.death else None,
        "final_answer": result.final.text if result.final else None,
        "variables": [{"name": each.name, "type": each.type_name, "size": each.size} for each in result.variables],
        "seconds": round(result.seconds, 3),
        "error": None,
    }
