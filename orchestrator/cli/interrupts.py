"""Ctrl-C once stops cleanly, twice at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from orchestrator.cli.screen import warn

T = TypeVar("T")


class Interrupted(Exception):
    """The person, or whoever runs this process, asked it to stop; everything was cleaned up."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(signal.Signals(signal_number).name)


STOPPING = "requests are canceled and containers removed"


def run(work: Callable[[], Coroutine[Any, Any, T]], *, stopping: str = STOPPING) -> T:
    """Runs `work` in an event loop of its own; a first signal cancels it, a second one ends the process on the spot.

    `stopping` tells the person what the first one does.

    Raises `Interrupted` after a signal, when `work` has cleaned up.
    """
    return asyncio.run(_supervise(work, stopping))


async def _supervise(work: Callable[[], Coroutine[Any, Any, T]], stopping: str) -> T:
    task = asyncio.ensure_future(work())
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            _leave(number)
        warn(f"{stopping}. Press Ctrl-C again to stop at once.", label="Stopping")
        task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Only the main thread of a process can receive signals.
    own = threading.current_thread() is threading.main_thread()
    loop = asyncio.get_running_loop()
    for number in numbers if own else ():
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number in numbers if own else ():
            loop.remove_signal_handler(number)


def _leave(number: int) -> None:
    """No cleanup: what is left behind is reclaimed by the next start, or by `rlm cleanup`."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the live tree hides the cursor
    sys.stderr.write("\nStopped at once. `rlm cleanup` removes what is left.\n")
    sys.stderr.flush()
    os._exit(128 + number)
