"""Whether a guest still talks: its silence is the only sign that its host, its engine or itself is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.sandbox.wire import ProtocolViolation

_LATELY_S = 5.0
_HEARTBEATS_MAX = 100  # in the time of one silence; the guest sends one every few seconds


class Hearing:
    """Tells, once, that nothing was heard for too long."""

    def __init__(self, silence_s: float, silent: Callable[[float], None]) -> None:
        self._silence_s = silence_s
        self._silent = silent
        self._loop = asyncio.get_running_loop()
        self._heard = self._began = self._loop.time()
        self._heartbeats = 0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def lately(self) -> bool:
        """Whether anything was heard within the time of two heartbeats, and a little."""
        return self._loop.time() - self._heard < _LATELY_S

    def begin(self) -> None:
        self._heard = self._began = self._loop.time()
        self._look_again()

    def heard(self) -> None:
        self._heard = self._loop.time()

    def heartbeat(self) -> None:
        """Raises `ProtocolViolation` for a flood.

        By the time since the beginning: after a stop of this process (Ctrl-Z, a debugger) all that came meanwhile is
        read at once, and was no flood.
        """
        self._heartbeats += 1
        if self._heartbeats > _HEARTBEATS_MAX * (1 + (self._loop.time() - self._began) / self._silence_s):
            raise ProtocolViolation("a flood of heartbeats")

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _look_again(self) -> None:
        # A loop that was itself held up reads what has come before it judges: silence must be found twice.
        self._watch = self._loop.call_later(self._silence_s / 2, self._check, False)

    def _check(self, suspected: bool) -> None:
        silent_s = self._loop.time() - self._heard
        if silent_s < self._silence_s:
            self._look_again()
        elif not suspected:
            self._watch = self._loop.call_later(min(1.0, self._silence_s), self._check, True)
        else:
            self._silent(silent_s)
