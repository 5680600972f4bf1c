"""`python -m orchestrator.testing.scripted`: the scripted server as a program.

Prints its URL as the first line, serves until SIGTERM or SIGINT, and exits with 0. Wrong arguments exit
with 2 and say which and why.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.testing.scripted.script import READY, Script, ScriptError, parse_script
from orchestrator.testing.scripted.server import ScriptedServer

FAULTS_VARIABLE = "SCRIPTED_FAULTS"
SCRIPT_VARIABLE = "SCRIPTED_SCRIPT"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    try:
        script = _script(options.script)
        server = ScriptedServer(
            script.policies,
            host=options.host,
            port=options.port,
            # The command line speaks for one run, so it wins over the file.
            faults=script.faults if options.faults is None else options.faults,
            # A container may serve for days, and nobody in it looks at the records.
            max_recorded=1000,
        )
    except ValueError as error:
        return _refused(error)
    try:
        asyncio.run(_serve(server))
    except OSError as error:
        return _refused(error)
    return 0


def _refused(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.testing.scripted",
        description="An OpenAI-compatible server whose models are scripts: no model runs, no key is needed.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=0, help="port; 0 is a free one (default: %(default)s)")
    parser.add_argument(
        "--script",
        default=os.environ.get(SCRIPT_VARIABLE),
        metavar="FILE",
        help=f"JSON file with the models (default: ${SCRIPT_VARIABLE}, else {' and '.join(READY)})",
    )
    parser.add_argument(
        "--faults",
        default=os.environ.get(FAULTS_VARIABLE),
        metavar="SPEC",
        help=f'faults for all requests, as "latency=0.05&fail=429&times=1" (default: ${FAULTS_VARIABLE})',
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 0 to 65535")
    return int(text)


def _script(path: str | None) -> Script:
    if not path:
        return Script(READY, "")
    try:
        return parse_script(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"the script {path} cannot be read: {error}") from error


async def _serve(server: ScriptedServer) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server:
        print(server.url, flush=True)
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
