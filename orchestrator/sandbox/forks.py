"""Descriptors whose end says that this process is gone: a child that is forked must not keep them open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_ours: set[int] = set()


@contextmanager
def not_for_children(descriptor: int) -> Iterator[None]:
    """Closes the descriptor in each child process that is forked during the block; executed ones have none anyway."""
    _ours.add(descriptor)
    try:
        yield
    finally:
        _ours.discard(descriptor)


def _close_in_child() -> None:
    for descriptor in _ours:
        try:
            os.close(descriptor)
        except OSError:
            pass  # whoever owned it has closed it already
    _ours.clear()


os.register_at_fork(after_in_child=_close_in_child)
