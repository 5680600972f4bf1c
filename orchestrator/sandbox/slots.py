"""Room for sandboxes, given out so that a recursion can always finish."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.errors import InvalidInput, SandboxUnavailable


class Slots:
    """`capacity` slots; a request of height h (levels of sandboxes that may be opened beneath it) needs h to stay free.

    A parent keeps its slot while it waits for children that need slots too, so one plain limit hangs: two runs of two
    levels under a limit of two hold both slots, and wait for a third. Here a slot is granted only if `free > height`.

    Why this cannot hang. Let H(h) be the number of held slots whose height is at least h. A grant of height g >= h is
    made only when free > g, so after it free >= g >= h and H(h) <= held <= capacity - h; H(h) grows in no other way, so
    H(h) <= capacity - h always. Now let m be the least height among the held. If m = 0, that holder opens nothing and
    so ends by itself. If not, all held have height >= m, so held = H(m) <= capacity - m and free >= m: a child of that
    holder has height <= m - 1 < free and can be granted at once. If nothing is held, free = capacity, which is larger
    than any height that `acquire` lets in. So somebody can always go on, and every tree is finite.

    Waiters are served by height, the smallest first, then in order of arrival: if the first cannot be served, no other
    can.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise InvalidInput("capacity", f"must be at least 1; it is {capacity}.")
        self.capacity = capacity
        self._free = capacity
        self._order = itertools.count()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def held(self) -> int:
        return self.capacity - self._free

    @property
    def waiting(self) -> int:
        return sum(not future.done() for _, _, future in self._waiters)

    @asynccontextmanager
    async def acquire(self, height: int, timeout_s: float) -> AsyncIterator[None]:
        """Holds one slot for the block.

        Raises:
            InvalidInput: the capacity can never be enough for this height.
            SandboxUnavailable: no slot in time.
        """
        if not 0 <= height < self.capacity:
            raise InvalidInput(
                "capacity",
                f"must be at least {height + 1} for {height + 1} levels of sandboxes; it is {self.capacity}.",
                f"Set RLM_CAPACITY={height + 1} or more.",
            )
        await self._take(height, timeout_s)
        try:
            yield
        finally:
            self._free += 1
            self._grant()

    async def _take(self, height: int, timeout_s: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (height, next(self._order), future))
        self._grant()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                # Granted in the same moment as it was given up.
                self._free += 1
            else:
                future.cancel()
            self._grant()
            if isinstance(error, TimeoutError):
                raise SandboxUnavailable(
                    f"no room for a sandbox within queue_timeout_s={timeout_s:g}: "
                    f"{self.held} of capacity={self.capacity} are in use.",
                    "Raise RLM_CAPACITY or RLM_QUEUE_TIMEOUT_S, or run less at a time.",
                ) from None
            raise

    def _grant(self) -> None:
        while self._waiters:
            height, _, future = self._waiters[0]
            if not future.done():
                if self._free <= height:
                    return
                self._free -= 1
                future.set_result(None)
            heapq.heappop(self._waiters)
