"""The calls with which one cell asks: which wait for an answer, and what is left of those that were given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from orchestrator.sandbox.waits import Waits
from orchestrator.values import Answered, Slot

MAX_ASKS_IN_FLIGHT = 64  # the guest keeps to this many too
MAX_BYTES_IN_FLIGHT = 128 * 1024 * 1024  # of questions; two messages of the largest size
# A call that the code gave up leaves room for another at once, but its answering may take a while to stop: a sub-call
# closes its sandbox first. With this much of both together, the next call is read when some of it is done.
_MAX_ASKS_HELD = 4 * MAX_ASKS_IN_FLIGHT
_MAX_BYTES_HELD = 2 * MAX_BYTES_IN_FLIGHT


class AskRefused(Exception):
    """A question that gets no answer. The text is fixed, and fit for the guest."""


class AskNotNow(AskRefused):
    """No cell runs, or questions are not allowed here."""


class TooManyAsks(AskRefused):
    """Too many are being answered already."""


class AskCancelled(AskRefused):
    """The cell ended first, or is being stopped."""


class AskCall:
    """The place of one call among those of its cell. Used as a context manager, until its answer is ready."""

    def __init__(self, asks: CellAsks) -> None:
        self._asks = asks
        self._size = 0
        self._given_back = False
        self.given_up = False  # by the guest
        asks._calls += 1

    def takes(self, size: int) -> None:
        """Counts its question. Raises `TooManyAsks` for too many bytes of questions."""
        if self._asks._bytes + size > MAX_BYTES_IN_FLIGHT:
            raise TooManyAsks(f"at most {MAX_BYTES_IN_FLIGHT:,} bytes of questions may be in flight")
        self._size += size
        self._asks._bytes += size

    def give_up(self) -> None:
        """Leaves room for another at once, while what it began is still being stopped."""
        self.given_up = True
        self._give_back()

    def __enter__(self) -> AskCall:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if not self._given_back:
            self._given_back = True
            self._asks._calls -= 1
            self._asks._bytes -= self._size


class CellAsks:
    """The calls of one cell, from the first byte of each. All of them end with it, or before, when it is to stop."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._calls = 0
        self._bytes = 0  # of those calls
        self._bytes_held = 0  # those of calls that were given up included
        self._answering: set[asyncio.Task[Any]] = set()  # the calls' own tasks, those that were given up included
        self._waiting: set[asyncio.Task[Any]] = set()
        self.over = False
        self._changed: asyncio.Event | None = None  # once somebody has waited

    @property
    def answering(self) -> bool:
        return len(self._answering) > 0

    def call(self) -> AskCall:
        """A call begins. Raises `AskCancelled`, `TooManyAsks`."""
        if self.over:
            raise AskCancelled("the cell has ended")
        if self._calls >= MAX_ASKS_IN_FLIGHT:
            raise TooManyAsks(f"at most {MAX_ASKS_IN_FLIGHT} calls may be in flight")
        return AskCall(self)

    @contextmanager
    def waiting(self, handler: asyncio.Task[Any]) -> Iterator[None]:
        """For a part of a call that would go on after the cell. Raises `AskCancelled` when the cell ends in it."""
        if self.over:
            raise AskCancelled("the cell has ended")
        self._waiting.add(handler)
        try:
            yield
        except asyncio.CancelledError:
            if not self.over:
                raise  # the guest has given the call up
            handler.uncancel()
            raise AskCancelled("the cell has ended") from None
        finally:
            self._waiting.discard(handler)

    @property
    def has_room(self) -> bool:
        """Whether not too much that was given up is still being stopped."""
        return len(self._answering) < _MAX_ASKS_HELD and self._bytes_held <= _MAX_BYTES_HELD

    async def room(self) -> None:
        """Waits until it has room."""
        while not self.has_room:
            await self._change()

    async def answer(self, work: Awaitable[Sequence[Slot]], call: AskCall, size: int) -> Sequence[Slot]:
        """Awaits the answer to a question of `size` bytes, in the call's own task: another would take three turns more.

        Raises `AskCancelled` when the cell ends first, or `work` is cancelled by other than the guest's giving up; and
        what `work` raises.
        """
        handler = asyncio.current_task()
        assert handler is not None
        self._waits.begin_answer()
        self._bytes_held += size
        self._answering.add(handler)
        self._tell()
        try:
            slots = await work
        except asyncio.CancelledError:
            if call.given_up and not self.over:
                raise
            handler.uncancel()
            raise AskCancelled("the cell has ended") from None
        finally:
            self._bytes_held -= size
            self._answering.discard(handler)
            self._waits.end_answer()
            self._tell()
        for slot in slots:
            if isinstance(slot, Answered):
                self._waits.answered()
                break
        return slots

    def end(self) -> None:
        """Cancels all of it, and waits for none."""
        self.over = True
        for handler in (*self._answering, *self._waiting):
            handler.cancel()
        self._tell()

    async def close(self) -> None:
        """Cancels what is still being answered, and waits until it is stopped."""
        self.end()
        while self._answering:
            await self._change()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        await self._changed.wait()
