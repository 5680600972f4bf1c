"""Log lines on stderr for programs that have not decided where they go."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from orchestrator.folds.safe_lines import lines_to_stderr


def show_logs(secrets: Iterable[str | None] = ()) -> None:
    """Lets the lines of `log_lines` through, to the program's own handlers where it has any, else to stderr.

    A level that was set stays. One that was not would be the root's WARNING: most lines would be lost, also in a
    program that has set logging up.
    """
    logger = logging.getLogger("orchestrator")
    if not logger.hasHandlers():
        logger.addHandler(lines_to_stderr(secrets))
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
