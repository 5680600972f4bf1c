"""Text of models and sandboxes, made safe for a terminal and for a log.

An escape sequence can move the cursor, set the title or the clipboard, and hide or fake what was printed before it; a
bidirectional control can make a line read as another one. See ECMA-48 (control functions) and CVE-2021-42574.
"""

from __future__ import annotations

import re

# Whole sequences first, so that their printable rest ("[31m") goes with them; then every control that is left. Each
# alternative is linear: the text is an attacker's.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colors, cursor
    r"|(?:\x1b[\]P^_X]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, PM, APC, SOS
    r"|\x1b[ -/]*[0-~]?"  # all other escapes
)
_NEWLINES = re.compile(r"\r\n?|[\x85\u2028\u2029\x0b\x0c]")
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\x80-\x9f"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\U000e0000-\U000e007f]"  # tags: invisible text
)
_SURROGATES = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(r"\s+")


def printable(text: str) -> str:
    """The text without C0, C1, escape sequences and bidirectional controls; newlines and tabs stay."""
    text = _NEWLINES.sub("\n", text)
    text = _SEQUENCE.sub("", text)
    text = _CONTROLS.sub("", text)
    return _SURROGATES.sub("\ufffd", text)


def one_line(text: str, limit: int = 200) -> str:
    """The beginning of the text as one safe line of at most `limit` characters; a cut one ends in an ellipsis."""
    # A prompt may be megabytes long, and a viewer asks for its line with every event.
    part = text[: limit * 4]
    line = _SPACES.sub(" ", printable(part)).strip()
    if len(line) > limit:
        return line[: limit - 1].rstrip() + "…"
    return line + "…" if len(part) < len(text) and len(line) < limit else line


def last_line(text: str, limit: int = 200) -> str:
    """The last line of the text that says anything, as one safe line of at most `limit` characters."""
    for line in reversed(printable(text[-limit * 4 :]).splitlines()):
        if stripped := _SPACES.sub(" ", line).strip():
            return stripped if len(stripped) <= limit else "…" + stripped[-(limit - 1) :]
    return ""
