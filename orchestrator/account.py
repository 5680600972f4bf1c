"""What is used and reserved in an account, and whether a call still fits: the arithmetic beneath `budget`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.errors import BudgetExceeded
from orchestrator.values import Limits, Spent, Usage

_ROUNDING_USD = 1e-9  # sums of floats; far below the price of one token


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
class Wait:
    """Calls in flight may still leave room."""

    at: Account


class Queue(Protocol):
    """Calls of one tree that wait for room."""

    def serve_queue(self) -> None: ...


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
        self.waiting: dict[Queue, None] = {}  # those whose next call waits for room here, the first come first

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
        for queue in tuple(self.waiting):
            if queue in self.waiting:
                queue.serve_queue()
                if queue in self.waiting:
                    return


@dataclass(frozen=True, slots=True)
class Share:
    """What a tree may use of an account that others use too. `remedy` is for a call that does not fit."""

    account: Account
    limits: Limits
    remedy: str = ""

    def verdict(self, wanted: Wanted) -> int | BudgetExceeded | Wait | None:
        """The most output tokens that fit here, None without a limit on them."""
        limits, used = self.limits, self.account
        if limits.max_calls is not None:
            if used.calls + 1 > limits.max_calls:
                return BudgetExceeded("max_calls", limits.max_calls, used.calls, 1, self.remedy)
            if used.calls + used.in_flight + 1 > limits.max_calls:
                return Wait(used)  # one in flight may be answered from the cache
        if limits.max_tokens is None and limits.max_cost_usd is None:
            return None
        if (hopeless := self._hopeless(wanted)) is not None:
            return hopeless
        output = self._fitting_output(wanted)
        if output < wanted.output_tokens and used.in_flight:
            return Wait(used)  # for its full size, rather than to be cut while others may leave room
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
