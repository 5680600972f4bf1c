"""Log lines for a terminal: whatever text got into a line, it is one line, without controls and without secrets."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from orchestrator.folds.printable import printable
from orchestrator.folds.redaction import Redactor


class SafeLines(logging.Formatter):
    """The message of each record, and a traceback indented below it: a line of it cannot pass for another record."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._redact = Redactor(secrets)

    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(printable(self._redact(record.getMessage())).splitlines())
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        for text in (record.exc_text, record.stack_info):
            for below in printable(self._redact(text or "")).splitlines():
                line += f"\n    {below}"
        return line


def lines_to_stderr(secrets: Iterable[str | None] = ()) -> logging.Handler:
    """`secrets` are what this process was told of such; what looks like one is taken out anyway."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeLines(each for each in secrets if each))
    return handler
