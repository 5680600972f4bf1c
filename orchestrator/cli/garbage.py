"""How often Python looks for garbage, in processes that are ours: a library leaves that to its host."""

from __future__ import annotations

import gc

_NEW_OBJECTS = 10_000  # of CPython's default of 700


def collect_less_often() -> None:
    """For a process that does nothing but orchestrate. Why, and what it brings: docs/decisions/0013."""
    gc.set_threshold(_NEW_OBJECTS, 10, 10)
