"""Which models have a label of their own.

A model's name comes from whoever starts a run. Each new value of a label is a new time series, kept for as long as the
process lives: the number of values must not be the callers' to choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OTHER = "other"

_LONGEST = 100
_UNFIT = re.compile(r"[^\x21-\x7e]")


class ModelLabels:
    """The label of a model: its name, for those that are `known` and for the first `most` others; then "other"."""

    def __init__(self, known: Iterable[str] = (), most: int = 20) -> None:
        self._labels = {name: _fit(name) for name in known}
        self._room = most

    def __call__(self, model: str) -> str:
        found = self._labels.get(model)
        if found is not None:
            return found
        if self._room <= 0:
            return OTHER
        self._room -= 1
        label = self._labels[model] = _fit(model)
        return label


def _fit(name: str) -> str:
    return _UNFIT.sub("?", name[:_LONGEST]) or OTHER
