"""How much of a cell's time is not the code's: what it waits for the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The host counts a cell's time by a clock of its own, too, and a busy host adds its delays to each call. Only one that
# was answered counts: what it cost is bounded, and so is how long a hostile guest can put off the host's own limit.
_ALLOWANCE_S = 1.0
# The same for the guest's clock, by which the code's own limit is kept: it counts the way there and back, and a busy
# host's delays, as the code's time.
_GUEST_ALLOWANCE_S = 0.02


class Waits:
    """Counts while at least one question is answered; and apart from that, while the host reads nothing for its pace.

    Of the second, code can bring about as much as it likes, and do nothing meanwhile: it is bounded by `most_paused_s`,
    together with what the guest is allowed for its answers.
    """

    def __init__(self, most_paused_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_paused_s = most_paused_s
        self._clock = clock
        self._since = clock()
        self._answering = self._pauses = 0
        self._answering_s = self._paused_s = 0.0
        self._answered = 0  # calls, with at least one answer

    @property
    def now(self) -> bool:
        """Whether the cell waits, for whatever it is."""
        return self._answering > 0 or self._pauses > 0

    @property
    def waited_s(self) -> float:
        """For how long it has waited until now, in all. What many wait for at a time counts once."""
        self._count()
        return self._answering_s + min(self._paused_s, self._most_paused_s)

    @property
    def excused_s(self) -> float:
        """How much of the time is not the code's as the host counts it."""
        return self.waited_s + self._answered * _ALLOWANCE_S

    @property
    def guest_excused_s(self) -> float:
        """How much of it, as the guest counts it."""
        self._count()
        return self._answering_s + min(self._paused_s + self._answered * _GUEST_ALLOWANCE_S, self._most_paused_s)

    def begin_answer(self) -> None:
        if not self._answering:
            self._count()
        self._answering += 1

    def end_answer(self) -> None:
        if self._answering == 1:
            self._count()
        self._answering -= 1

    def answered(self) -> None:
        """One of them was ended by an answer."""
        self._answered += 1

    def begin_pause(self) -> None:
        self._count()
        self._pauses += 1

    def end_pause(self) -> None:
        self._count()
        self._pauses -= 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For a part of a call in which its pace makes it wait."""
        self.begin_pause()
        try:
            yield
        finally:
            self.end_pause()

    def _count(self) -> None:
        now = self._clock()
        if self._answering:
            self._answering_s += now - self._since
        elif self._pauses:
            self._paused_s += now - self._since
        self._since = now
