"""What the desks of one service share: the orchestrator, the store, the rules, the room, and the open door."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from orchestrator.budget import Account, Share
from orchestrator.build import Orchestrator
from orchestrator.errors import InvalidInput, NotFound, QuotaExceeded, ShuttingDown, TooLarge
from orchestrator.events import Sink
from orchestrator.hosting.clock import Clock
from orchestrator.hosting.orders import Uploaded
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.settings import HostingSettings
from orchestrator.store.asynchronous import StoreThreads
from orchestrator.store.database import Store
from orchestrator.store.rows import StoredContext
from orchestrator.values import Attachment, Context, Limits
from orchestrator.wire.caps import LABEL_BYTES, LABELS, REQUEST_ID_CHARS

logger = logging.getLogger(__name__)
S = TypeVar("S", bound=msgspec.Struct)

# Further sinks for one run or kept sandbox, given its trace context and its id.
SinksOf = Callable[[Mapping[str, str], str], Sequence[Sink]]

_REQUEST_ID = re.compile(rf"[\x20-\x7e]{{0,{REQUEST_ID_CHARS}}}")
_GONE_KEPT = 1000


class Room:
    """Places for sandboxes that stay: sessions and kept sandboxes together, of all and of each principal."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken: Counter[str] = Counter()

    def take(self, principal: Principal) -> None:
        """Raises `QuotaExceeded`."""
        taken, own = self._taken.total(), principal.quotas.max_sandboxes
        if own is not None and self._taken[principal.name] >= own:
            raise QuotaExceeded(
                "max_sandboxes", own, self._taken[principal.name], "Close a session, or delete a sandbox, first."
            )
        if taken >= self._places:
            raise QuotaExceeded(
                "kept_sandboxes",
                self._places,
                taken,
                "The rest of RLM_CAPACITY is for runs: close a session or delete a sandbox, or raise it.",
            )
        self._taken[principal.name] += 1

    def give_back(self, principal: str) -> None:
        self._taken[principal] -= 1


class Gone:
    """What became of things that are no longer there, as long as somebody may ask: a text for their owner."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._reasons: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def add(self, identifier: str, principal: str, reason: str) -> None:
        self._reasons[identifier] = principal, reason
        while len(self._reasons) > _GONE_KEPT:
            self._reasons.popitem(last=False)

    def error(self, identifier: str, principal: Principal) -> NotFound:
        owner, reason = self._reasons.get(identifier, ("", ""))
        return NotFound(self._what, identifier, reason if owner and principal.may_see(owner) else "")


@dataclass(slots=True)
class Premises:
    orchestrator: Orchestrator
    store: Store
    threads: StoreThreads
    settings: HostingSettings
    clock: Clock
    room: Room
    sinks_of: SinksOf
    closing: bool = False
    accounts: dict[str, Account] = field(default_factory=dict)
    arriving: Counter[str] = field(default_factory=Counter)  # bytes of uploads under way

    @property
    def kept_height(self) -> int:
        """What a kept sandbox leaves free beneath it: the deepest run must be able to finish beside all that stay."""
        return self.settings.max_depth - 1

    def check_open(self) -> None:
        """Raises `ShuttingDown`."""
        if self.closing:
            raise ShuttingDown

    async def account_of(self, principal: str) -> Account:
        """What it has used so far, and what its calls that are under way have reserved."""
        if (known := self.accounts.get(principal)) is not None:
            return known
        total = await self.threads.call(self.store.total_of, principal)
        # Nothing of it runs before this: two who came at the same time have read the same.
        return self.accounts.setdefault(principal, Account(total.tokens, total.cost_usd))

    async def share_of(self, principal: Principal) -> Share:
        """What all its runs and sandboxes draw on together, so that its quotas hold for those at the same time too."""
        quotas = principal.quotas
        limits = Limits(max_cost_usd=quotas.max_cost_usd, max_tokens=quotas.max_tokens)
        remedy = f"It is the quota of all that {principal.name} runs: ask the operator for more."
        return Share(await self.account_of(principal.name), limits, remedy)

    async def within_quota(self, principal: Principal, limits: Limits) -> Limits:
        """The limits, narrowed to what is left of the principal's totals. Raises `QuotaExceeded` when nothing is."""
        quotas = principal.quotas
        for name, given in (("max_cost_usd", limits.max_cost_usd), ("max_tokens", limits.max_tokens)):
            if given is not None and not 0 < given < math.inf:  # NaN is below nothing: it would outlast every quota
                raise InvalidInput(name, f"must be a number above 0; it is {given}.")
        if quotas.max_cost_usd is None and quotas.max_tokens is None:
            return limits
        used = await self.account_of(principal.name)
        cost, tokens = limits.max_cost_usd, limits.max_tokens
        if quotas.max_cost_usd is not None:
            left_usd = quotas.max_cost_usd - used.cost_usd
            if left_usd <= 0:
                raise QuotaExceeded("max_cost_usd", quotas.max_cost_usd, used.cost_usd, "Ask the operator for more.")
            cost = left_usd if cost is None else min(cost, left_usd)
        if quotas.max_tokens is not None:
            left = quotas.max_tokens - used.tokens
            if left <= 0:
                raise QuotaExceeded("max_tokens", quotas.max_tokens, used.tokens, "Ask the operator for more.")
            tokens = left if tokens is None else min(tokens, left)
        return msgspec.structs.replace(limits, max_cost_usd=cost, max_tokens=tokens)

    @asynccontextmanager
    async def storage(self, principal: Principal, size: int) -> AsyncIterator[None]:
        """Room for so many bytes to be stored in the block. Raises `QuotaExceeded`."""
        most = principal.quotas.max_stored_bytes
        self.arriving[principal.name] += size
        try:
            if most is not None:
                stored = await self.threads.call(self.store.stored_bytes, principal.name)
                if stored + self.arriving[principal.name] > most:
                    raise QuotaExceeded("max_stored_bytes", most, stored, "Delete contexts or runs first.")
            yield
        finally:
            self.arriving[principal.name] -= size

    @asynccontextmanager
    async def uploaded(self, context_id: str, principal: Principal) -> AsyncIterator[StoredContext]:
        """A stored context that cannot be removed during the block. Raises `NotFound`."""
        self.store.hold_context(context_id)
        try:
            found = await self.threads.call(self.store.find_context, context_id)
            if found is None or not principal.may_see(found.principal):
                raise NotFound("context", context_id)
            yield found
        finally:
            self.store.release_context(context_id)

    @asynccontextmanager
    async def context(self, given: Attachment | Uploaded | None, principal: Principal) -> AsyncIterator[Context | None]:
        """What an order has along, at rest for the block. Raises `NotFound`, `InvalidInput`, `TooLarge`."""
        match given:
            case None:
                yield None
            case Uploaded(context_id):
                async with self.uploaded(context_id, principal) as stored:
                    yield Context(stored.path, stored.info)
            case Attachment():
                most = self.settings.max_inline_bytes
                if len(given.data) > most:
                    raise TooLarge("max_inline_bytes", most, len(given.data), "Upload it first, and give its id.")
                context = await self.orchestrator.contexts.put_attachment(given)
                try:
                    yield context
                finally:
                    await self.orchestrator.contexts.drop(context)


def check_order(request_id: str, labels: Mapping[str, str]) -> None:
    """Raises `InvalidInput`."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidInput(
            "request_id", f"must be at most {REQUEST_ID_CHARS} printable ASCII characters.", "A UUID is a good choice."
        )
    if len(labels) > LABELS:
        raise InvalidInput("labels", f"may be {LABELS} at most; there are {len(labels)}.")
    for pair in labels.items():
        if not pair[0] or any(len(text.encode("utf-8", "replace")) > LABEL_BYTES for text in pair):
            raise InvalidInput(
                "labels", f"need a name, and names and values have at most {LABEL_BYTES} bytes: {pair[0][:40]!r}."
            )


def order_hash(*parts: Any) -> str:
    """Equal for orders that say the same. Data is hashed by itself, so that a large context is not copied."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Attachment):
            part = (part.kind, hashlib.sha256(part.data).hexdigest())
        elif isinstance(part, Mapping):
            part = sorted(part.items())
        digest.update(msgspec.json.encode(part) + b"\n")
    return digest.hexdigest()


def converted(kind: type[S], base: S, given: Mapping[str, object]) -> S:
    """`base` with these changes, each checked by the rules of `kind`. Raises `InvalidInput` naming the setting."""
    names = kind.__struct_fields__
    for name, value in given.items():
        if name not in names:
            raise InvalidInput(name, "is not a setting of a run.", f"Settings are: {', '.join(names)}.")
        try:
            msgspec.convert({name: value}, kind)
        except msgspec.ValidationError as error:
            raise InvalidInput(name, f"{error} (it is {value!r}).") from None
    values = {name: getattr(base, name) for name in names}
    return msgspec.convert(values | dict(given), kind)
