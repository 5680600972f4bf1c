"""How much of the host's one event loop a guest may take: all sandboxes and runs of a process share it.

What comes from a guest is charged in seconds of the loop, by estimates that were measured on the slow side. A guest may
take a burst at once, and after that a share. One that goes above is read later, so that honest code which asks very
fast gets slower and nothing else; one that does not wait for its answers goes on above that, and is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable

CALL_S = 0.000_2  # a call, whatever becomes of it
QUESTION_S = 0.000_1  # with its two events, and what reads those
MESSAGE_S = 0.000_02  # of the stream, beside its read and its frame
READ_S = 0.000_02  # of the socket, however little comes
FRAME_S = 0.000_02  # of HTTP/2, whatever is in it
BYTE_S = 0.004 / (1 << 20)  # parsed, hashed, copied
# On top, for a call that is refused: the guest of ours keeps to the rules itself, and sends a few in a race at most.
REFUSED_S = 0.01

_SHARE = 0.25
_BURST_S = 5.0
_EXCESS_S = 5.0  # above the burst; a guest that is read only when it is back in its burst does not get there
_MAX_REFUSED_ABOVE = 64  # calls; as many as a guest may have in flight when its cell ends


class TooFast(Exception):
    """A guest that takes more than its share, and does not wait when it is made to."""


class Pace:
    """What one guest owes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owed_s = 0.0
        self._at = clock()

    def charge(self, seconds: float) -> None:
        """Raises `TooFast`."""
        now = self._clock()
        self._owed_s = max(0.0, self._owed_s - (now - self._at) * _SHARE) + seconds
        self._at = now
        if self._owed_s > _BURST_S + _EXCESS_S:
            raise TooFast

    def wait_s(self) -> float:
        """For how long nothing more should be read; 0 within the burst."""
        if self._owed_s <= _BURST_S:
            return 0.0
        return max(0.0, (self._owed_s - _BURST_S) / _SHARE - (self._clock() - self._at))


class Account:
    """The pace of one guest, and the end of a guest that goes on above it."""

    def __init__(self, exceeded: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        """`exceeded` is told why the guest must end; again is harmless, and what it goes on to send is charged too.

        So that one whose owner takes a while to close it is read no faster meanwhile.
        """
        self._pace = Pace(clock)
        self._exceeded = exceeded
        self._refused_above = 0

    def charge(self, seconds: float) -> None:
        """For what the guest has caused here."""
        try:
            self._pace.charge(seconds)
        except TooFast:
            self._exceeded("more calls, questions or bytes than one sandbox may send")

    def charge_refused(self) -> None:
        """For a question that was refused. Above its pace, a guest of ours sends a few in a race at most."""
        self.charge(REFUSED_S)
        if self.wait_s() > 0:
            self._refused_above += 1
            if self._refused_above > _MAX_REFUSED_ABOVE:
                self._exceeded("more questions that must be refused than one sandbox may send")

    def wait_s(self) -> float:
        """For how long nothing more should be read of the guest."""
        return self._pace.wait_s()
