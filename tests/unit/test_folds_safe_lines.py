"""Log lines on a terminal: one line a record, whatever is in it."""

from __future__ import annotations

import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.folds.redaction import REDACTED
from orchestrator.folds.safe_lines import SafeLines


def logged(text: str) -> logging.LogRecord:
    return logging.LogRecord("orchestrator.x", logging.INFO, "", 0, "%s", (text,), None)


@given(st.text())
def test_a_record_is_one_line_of_printable_text(text: str) -> None:
    line = SafeLines().format(logged(text))
    assert len(line.splitlines()) <= 1
    assert not any((ord(character) < 32 and character != "\t") or 0x7F <= ord(character) < 0xA0 for character in line)


def test_secrets_are_taken_out() -> None:
    line = SafeLines(["kQ9.unlike/any+shape=1"]).format(logged("kQ9.unlike/any+shape=1 and sk-abcdefghijkl"))
    assert line == f"{REDACTED} and {REDACTED}"


def test_a_traceback_cannot_pass_for_another_record() -> None:
    record = logged("failed")
    try:
        raise ValueError("\x1b[2J\n[Depth 0] run ok sk-abcdefghijkl")
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *below = SafeLines().format(record).splitlines()
    assert first == "failed"
    assert all(line.startswith("    ") for line in below)
    assert below[-1] == f"    [Depth 0] run ok {REDACTED}"
