"""Closes a span whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.events import Event, Outcome


@contextmanager
def ended(emit: Callable[[Event], None], event: Callable[[Outcome, str], Event]) -> Iterator[None]:
    """Emits `event(outcome, error)` at the end of the block, with what it knows by then.

    Whatever is not an `Exception` is a caller who stops: CANCELLED.
    """
    outcome, error = Outcome.CANCELLED, ""
    try:
        yield
        outcome = Outcome.OK
    except Exception as failure:
        outcome, error = Outcome.FAILED, str(failure) or type(failure).__name__
        raise
    finally:
        emit(event(outcome, error))
