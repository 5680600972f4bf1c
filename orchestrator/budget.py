"""What one tree may use, and what it has used: reserved before a call is made, settled after.

A call reserves its upper bound, so that calls made at the same time cannot pass a limit together. One that does not fit
now waits, first come first served, as long as calls in flight may turn out smaller than they reserved; it is refused
when they cannot, whatever becomes of them. Calls in flight never wait for calls that queue here, so nothing locks up.

Trees of one owner draw on an account together: each call reserves in its tree's account and in that one, or in none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.account import Account, Reservation, Share, Wait, Wanted
from orchestrator.errors import BudgetExceeded
from orchestrator.values import Limits, Spent

__all__ = ["Account", "Budget", "Reservation", "Share", "Wanted"]

_NO_MODEL = ""


class Budget:
    """The account of one tree: of a root and of all its descendants. It belongs to one event loop.

    With `share`, every call must also fit there, beside the calls of all other trees that draw on it.
    """

    def __init__(self, limits: Limits, share: Share | None = None) -> None:
        self.limits = limits
        self._parts: dict[tuple[int, str], Spent] = {}
        self._total = Spent()
        self._shares = (Share(Account(), limits), *((share,) if share is not None else ()))
        self._queue: deque[tuple[Wanted, asyncio.Future[Reservation]]] = deque()

    @property
    def spent(self) -> Spent:
        """The whole tree's total so far, without what is in flight."""
        return self._total

    @property
    def by_model(self) -> dict[str, Spent]:
        """Without the sandboxes, which belong to no model."""
        totals: dict[str, Spent] = {}
        for (_, model), spent in self._parts.items():
            if model == _NO_MODEL:
                continue
            totals[model] = totals.get(model, Spent()) + spent
        return totals

    @property
    def by_depth(self) -> dict[int, Spent]:
        totals: dict[int, Spent] = {}
        for (depth, _), spent in sorted(self._parts.items()):
            totals[depth] = totals.get(depth, Spent()) + spent
        return totals

    @asynccontextmanager
    async def reserve(self, wanted: Wanted) -> AsyncIterator[Reservation]:
        """Room for one call, given back after the block; what `settle` was told stays.

        Raises `BudgetExceeded` when the call cannot fit any more.
        """
        reservation = await self._admit(wanted)
        try:
            yield reservation
        finally:
            self._give_back(reservation)
            self._add(wanted.depth, wanted.model, reservation.spent)
            self._wake()

    def used_up(self) -> BudgetExceeded | None:
        """What refuses every further call, whatever its size; None while some call might still be made."""
        limits, used = self.limits, self._total
        if limits.max_calls is not None and used.calls >= limits.max_calls:
            return BudgetExceeded("max_calls", limits.max_calls, used.calls, 1)
        if limits.max_tokens is not None and used.usage.total_tokens >= limits.max_tokens:
            return BudgetExceeded("max_tokens", limits.max_tokens, used.usage.total_tokens, 1)
        return None

    def take_sandbox(self, depth: int = 0) -> None:
        """Counts a sandbox. Raises `BudgetExceeded` when there may be no more."""
        allowed, used = self.limits.max_sandboxes, self._total.sandboxes
        if allowed is not None and used + 1 > allowed:
            raise BudgetExceeded("max_sandboxes", allowed, used, 1)
        self._add(depth, _NO_MODEL, Spent(sandboxes=1))

    def serve_queue(self) -> None:
        """Decides on what waits, in order, as far as that can be decided now; `Account.wake` calls it."""
        while self._queue:
            wanted, future = self._queue[0]
            if not future.done():
                match self._verdict(wanted):
                    case Reservation() as reservation:
                        future.set_result(self._take(reservation))
                    case BudgetExceeded() as refusal:
                        future.set_exception(refusal)
                    case Wait(account):
                        self._wait_at(account)
                        return
            self._queue.popleft()
        self._wait_at(None)

    def _add(self, depth: int, model: str, spent: Spent) -> None:
        self._total += spent
        self._parts[depth, model] = self._parts.get((depth, model), Spent()) + spent
        for share in self._shares:
            share.account.add(spent)

    async def _admit(self, wanted: Wanted) -> Reservation:
        # Others may wait at an account that is shared: this one stands behind them.
        account = next((share.account for share in self._shares if share.account.waiting), None)
        if not self._queue and account is None:
            match self._verdict(wanted):
                case Reservation() as reservation:
                    return self._take(reservation)
                case BudgetExceeded() as refusal:
                    raise refusal
                case Wait(found):
                    account = found
        future: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        entry = (wanted, future)
        self._queue.append(entry)
        if len(self._queue) == 1:
            self._wait_at(account)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(future.result())  # served, and cancelled before it could go on
            elif entry in self._queue:
                self._queue.remove(entry)
            self._wake()  # whoever stood behind it may fit
            raise

    def _wait_at(self, account: Account | None) -> None:
        for share in self._shares:
            if share.account is account:
                account.waiting.setdefault(self)
            else:
                share.account.waiting.pop(self, None)

    def _wake(self) -> None:
        for share in self._shares:
            share.account.wake()

    def _take(self, reservation: Reservation) -> Reservation:
        for share in self._shares:
            share.account.take(reservation)
        return reservation

    def _give_back(self, reservation: Reservation) -> None:
        for share in self._shares:
            share.account.give_back(reservation)

    def _verdict(self, wanted: Wanted) -> Reservation | BudgetExceeded | Wait:
        verdicts = [share.verdict(wanted) for share in self._shares]
        for verdict in verdicts:
            if isinstance(verdict, BudgetExceeded):
                return verdict
        for verdict in verdicts:
            if isinstance(verdict, Wait):
                return verdict
        fitting = [verdict for verdict in verdicts if isinstance(verdict, int)]
        if not fitting:
            return Reservation(wanted, None, 0, 0.0)
        output = min(fitting)
        return Reservation(wanted, output, wanted.input_tokens + output, wanted.cost(output))
