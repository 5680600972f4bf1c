"""A log record as one line: JSON for a collector, text for a person. Without secrets, without control characters."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from orchestrator.folds.redaction import Redact

# C0, DEL, C1, line separators, bidirectional controls, tags, surrogates: what can fake, hide or split a line.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
_PLAIN = re.compile(r"[\w./:@+-]+\Z")
_LONGEST = 16_384  # characters of a message or a traceback; a line of megabytes stops a collector

# The attribute of a log record that holds an event's fields.
FIELDS = "rlm_fields"


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", "message", ...}`: further names are an event's fields, or `traceback`."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redact(_message(record)),
        }
        for name, value in _fields(record).items():
            if value is not None:
                values[name] = self._redact(value) if isinstance(value, str) else value
        if traceback := _traceback(self, record):
            values["traceback"] = self._redact(traceback)
        # JSON's own escapes leave C1 and the bidirectional controls as they are.
        return _CONTROLS.sub(_json_escape, json.dumps(values, ensure_ascii=False, default=str))


class TextLines(logging.Formatter):
    """`time LEVEL logger: message name=value ...`, always one line."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        parts = [f"{_time(record)} {record.levelname:<7} {record.name}: {self._redact(_message(record))}"]
        for name, value in _fields(record).items():
            if value is not None:
                text = self._redact(str(value))
                parts.append(f"{name}={text if _PLAIN.match(text) else json.dumps(text, ensure_ascii=False)}")
        if traceback := _traceback(self, record):
            parts.append(self._redact(traceback))
        return _CONTROLS.sub(_text_escape, " ".join(parts))


class RedactFilter(logging.Filter):
    """For a handler of one's own: takes secrets out of whatever it is about to write, tracebacks included."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redact(_message(record)), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._redact(record.exc_text)
        return True


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # a module's wrong format string must not lose the line
        text = f"{record.msg} {record.args!r}"
    return text[:_LONGEST]


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found = getattr(record, FIELDS, None)
    return found if isinstance(found, dict) else {}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_text:
        return record.exc_text[-_LONGEST:]
    return formatter.formatException(record.exc_info)[-_LONGEST:] if record.exc_info else ""


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _text_escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
