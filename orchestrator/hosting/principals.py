"""Who asks, and what they may have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What one principal may have. None: no limit."""

    max_runs: int | None = None  # running at a time
    max_sandboxes: int | None = None  # kept at a time, those of sessions included
    max_cost_usd: float | None = None  # of all runs and kept sandboxes together, ever
    max_tokens: int | None = None  # likewise
    max_stored_bytes: int | None = None  # of its runs, events and contexts, to store another context or recording


@dataclass(frozen=True, slots=True)
class Principal:
    """Runs, sessions, sandboxes and contexts belong to who made them; others get `NotFound`, an admin sees all."""

    name: str
    quotas: Quotas = Quotas()
    admin: bool = False

    def may_see(self, owner: str) -> bool:
        return self.admin or self.name == owner
