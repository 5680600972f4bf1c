"""What one tree may use, and what it has used: reserved before a call is made, settled after.

A call reserves its upper bound, so that calls made at the same time cannot pass a limit together. One that does not fit
now waits, first come first served, as long as calls in flight may turn out smaller than they reserved; it is refused
when they cannot, whatever becomes of them. Calls in flight never wait for calls that queue here, so nothing locks up.

Trees of one owner draw on an account together: each call reserves in its tree's account and in that one, or in none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orchestrator.errors import BudgetExceeded
from orchestrator.values import Limits, Spent, Usage

_ROUNDING_USD = 1e-9  # sums of floats; far below the price of one token


_NO_MODEL = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a call would use at most. `price` is USD of a usage, None when it is not known.

    With a limit on tokens or cost the call gets between `least_output_tokens` and `output_tokens`, as much as is left.
    """

    model: str
    depth: int
    input_tokens: int
    output_tokens: int
    least_output_tokens: int = 16
    price: Callable[[Usage], float] | None = None

    def cost(self, output_tokens: int) -> float:
        return self.price(Usage(self.input_tokens, output_tokens)) if self.price else 0.0


@dataclass(slots=True)
class Reservation:
    """Room for one call. `max_output_tokens` is what the call may ask for; None: no limit applies."""

    wanted: Wanted
    max_output_tokens: int | None
    tokens: int
    cost_usd: float
    spent: Spent = field(default_factory=Spent)

    def settle(self, spent: Spent) -> None:
        """Says what the call really used; without it, it used nothing."""
        self.spent = spent


@dataclass(frozen=True, slots=True)
class _Wait:
    """Calls in flight may still leave room."""

    at: Account


class Account:
    """What is used and reserved: by one tree, or by all trees that draw on it. It belongs to one event loop.

    `tokens` and `cost_usd` are what was used before it was opened.
    """

    def __init__(self, tokens: int = 0, cost_usd: float = 0.0) -> None:
        self.calls = 0
        self.tokens = tokens
        self.cost_usd = cost_usd
        self.in_flight = 0
        self.reserved_tokens = 0
        self.reserved_usd = 0.0
        self.waiting: dict[Budget, None] = {}  # those whose next call waits for room here, the first come first

    def take(self, reservation: Reservation) -> None:
        self.in_flight += 1
        self.reserved_tokens += reservation.tokens
        self.reserved_usd += reservation.cost_usd

    def give_back(self, reservation: Reservation) -> None:
        self.in_flight -= 1
        self.reserved_tokens -= reservation.tokens
        # Exactly nothing is reserved when nothing is in flight: rounding must not pile up over a long run.
        self.reserved_usd = self.reserved_usd - reservation.cost_usd if self.in_flight else 0.0

    def add(self, spent: Spent) -> None:
        self.calls += spent.calls
        self.tokens += spent.usage.total_tokens
        self.cost_usd += spent.cost_usd

    def wake(self) -> None:
        """Room may have come free: for the first in the queue, then for the next."""
        for budget in tuple(self.waiting):
            if budget in self.waiting:
                budget.serve_queue()
                if budget in self.waiting:
                    return


@dataclass(frozen=True, slots=True)
class Share:
    """What a tree may use of an account that others use too. `remedy` is for a call that does not fit."""

    account: Account
    limits: Limits
    remedy: str = ""

    def verdict(self, wanted: Wanted) -> int | BudgetExceeded | _Wait | None:
        """The most output tokens that fit here, None without a limit on them."""
        limits, used = self.limits, self.account
        if limits.max_calls is not None:
            if used.calls + 1 > limits.max_calls:
                return BudgetExceeded("max_calls", limits.max_calls, used.calls, 1, self.remedy)
            if used.calls + used.in_flight + 1 > limits.max_calls:
                return _Wait(used)  # one in flight may be answered from the cache
        if limits.max_tokens is None and limits.max_cost_usd is None:
            return None
        if (hopeless := self._hopeless(wanted)) is not None:
            return hopeless
        output = self._fitting_output(wanted)
        if output < wanted.output_tokens and used.in_flight:
            return _Wait(used)  # for its full size, rather than to be cut while others may leave room
        return output

    def _hopeless(self, wanted: Wanted) -> BudgetExceeded | None:
        """The refusal when even the smallest useful size does not fit beside what is used for good."""
        limits, used = self.limits, self.account
        least = min(wanted.least_output_tokens, wanted.output_tokens)
        if limits.max_tokens is not None:
            tokens = wanted.input_tokens + least
            if used.tokens + tokens > limits.max_tokens:
                return BudgetExceeded("max_tokens", limits.max_tokens, used.tokens, tokens, self.remedy)
        if limits.max_cost_usd is not None:
            if wanted.price is None:
                return BudgetExceeded(
                    "max_cost_usd",
                    limits.max_cost_usd,
                    used.cost_usd,
                    float("inf"),
                    f"No price is known for the model {wanted.model!r}: give one (RLM_PRICES), or drop max_cost_usd.",
                )
            cost = wanted.cost(least)
            if used.cost_usd + cost > limits.max_cost_usd + _ROUNDING_USD:
                return BudgetExceeded("max_cost_usd", limits.max_cost_usd, used.cost_usd, cost, self.remedy)
        return None

    def _fitting_output(self, wanted: Wanted) -> int:
        """The most output tokens, up to what is wanted, that fit beside all that is used and reserved.

        Never less than the smallest useful size when nothing is in flight, as `_hopeless` has made sure.
        """
        limits, used = self.limits, self.account
        output = wanted.output_tokens
        if limits.max_tokens is not None:
            free = limits.max_tokens - used.tokens - used.reserved_tokens
            output = max(0, min(output, free - wanted.input_tokens))
        if limits.max_cost_usd is not None:
            free_usd = limits.max_cost_usd - used.cost_usd - used.reserved_usd + _ROUNDING_USD
            if wanted.cost(output) > free_usd:
                output = _largest(output, lambda tokens: wanted.cost(tokens) <= free_usd)
        return output


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
                    case _Wait(account):
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
                case _Wait(found):
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
        self.serve_queue()
        for share in self._shares:
            share.account.wake()

    def _take(self, reservation: Reservation) -> Reservation:
        for share in self._shares:
            share.account.take(reservation)
        return reservation

    def _give_back(self, reservation: Reservation) -> None:
        for share in self._shares:
            share.account.give_back(reservation)

    def _verdict(self, wanted: Wanted) -> Reservation | BudgetExceeded | _Wait:
        verdicts = [share.verdict(wanted) for share in self._shares]
        for verdict in verdicts:
            if isinstance(verdict, BudgetExceeded):
                return verdict
        for verdict in verdicts:
            if isinstance(verdict, _Wait):
                return verdict
        fitting = [verdict for verdict in verdicts if isinstance(verdict, int)]
        if not fitting:
            return Reservation(wanted, None, 0, 0.0)
        output = min(fitting)
        return Reservation(wanted, output, wanted.input_tokens + output, wanted.cost(output))


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number in `[0, most]` that fits, by bisection; 0 when none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
