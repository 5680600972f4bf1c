"""How many iterations an RLM gets by its depth. Pure."""

from __future__ import annotations

from typing import Final

FEWEST_ITERATIONS: Final = 3


def iterations_at(depth: int, max_iterations: int) -> int:
    """The root's own number cut by depth: 20, 10, 6, 5. Always from the root's, so that the cuts do not compound."""
    return max_iterations if depth == 0 else max(FEWEST_ITERATIONS, max_iterations // (depth + 1))
