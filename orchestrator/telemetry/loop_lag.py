"""How late an event loop is: the time by which a timer fires after its moment.

Everything that a service does waits that much longer; what holds the loop up is a blocking call, or too much work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL_S = 0.25


@contextmanager
def watched_loop(
    observe: Callable[[float], object], interval_s: float = INTERVAL_S, loop: asyncio.AbstractEventLoop | None = None
) -> Iterator[None]:
    """Observes the loop for the block, entered and left in its thread. Raises `RuntimeError` without a loop."""
    loop = loop or asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look(due: float) -> None:
        nonlocal timer
        now = loop.time()
        observe(max(0.0, now - due))
        timer = loop.call_at(now + interval_s, look, now + interval_s)

    first = loop.time() + interval_s
    timer = loop.call_at(first, look, first)
    try:
        yield
    finally:
        timer.cancel()
