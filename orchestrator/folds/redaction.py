"""Secrets are taken out of text before it is written anywhere.

Two nets: the secrets that this process was configured with, wherever they appear; and what looks like a secret, for
those that it was not told of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

REDACTED = "[redacted]"

Redact = Callable[[str], str]

# A shorter one ("none", "test") is a placeholder more often than a secret, and part of many words.
_SHORT = 8
# This much of a secret's beginning is taken out as well: lines are cut, and a cut may fall into a secret.
_TELLING = 12

# Each alternative is linear: the text may be an attacker's.
_HEADER = re.compile(
    r"""(?ix) (?P<before> authorization["']?\s*[:=]\s*) (?: "[^"\r\n]*"? | '[^'\r\n]*'? | [^\r\n]+ )"""
)
_NAMED = re.compile(
    r"""(?ix)
    (?P<before>
        \bbearer\s+
      | (?:api[_-]?key|secret|password|passwd|(?:access|auth|session)[_-]?token)["']?\s*[:=]\s*["']?
    )
    [^\s"',;&}\]\[)]{4,}
    """
)
_SHAPED = re.compile(
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{8,}"  # OpenAI and those that took its form
    r"|\bAIza[A-Za-z0-9_-]{20,}"  # Google
    r"|\bgh[opsu]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\brlm_[A-Za-z0-9_-]{43}"  # our own: `rlm token new`
    r"|\bhf_[A-Za-z0-9]{20,}|\bgsk_[A-Za-z0-9]{20,}|\bxox[a-z]-[A-Za-z0-9-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    # A JSON Web Token, or the beginning of one. To ask for the dot after its first part would be quadratic, since "-"
    # both stands in a part and begins a word: each "-eyJ" would be read to the end of all of them, in vain.
    r"|\beyJ[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+){0,2}"
)
_IN_URL = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]{0,30}://)[^\s/@]{1,1024}@", re.IGNORECASE)


class Redactor:
    """Text without secrets. `secrets` are this process's own: API keys, tokens.

    One of 8 characters or more is found anywhere, inside of words, percent-encoded and backslash-escaped too; a shorter
    one only where it is a word of its own.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        told = {each.strip() for each in secrets} - {""}
        forms = {form for each in told for form in (each, quote(each, safe=""), _escaped(each))}
        # The longest first: one secret may be the beginning of another.
        self._own = sorted((each for each in forms if len(each) >= _SHORT), key=lambda form: (-len(form), form))
        words = "|".join(re.escape(each) for each in sorted(forms) if len(each) < _SHORT)
        self._words = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])") if words else None

    def __call__(self, text: str) -> str:
        for secret in self._own:
            text = _without(secret, text)
        if self._words is not None:
            text = self._words.sub(REDACTED, text)
        text = _HEADER.sub(rf"\g<before>{REDACTED}", text)
        text = _NAMED.sub(rf"\g<before>{REDACTED}", text)
        text = _SHAPED.sub(REDACTED, text)
        return _IN_URL.sub(rf"\g<before>{REDACTED}@", text)


def _without(secret: str, text: str) -> str:
    """The text without the secret, and without beginnings of it that are long enough to tell."""
    head = secret[:_TELLING]
    at = text.find(head)
    if at < 0:
        return text
    parts: list[str] = []
    start = 0
    while at >= 0:
        parts += (text[start:at], REDACTED)
        start = at + _agreeing(text, at, secret)
        at = text.find(head, start)
    return "".join((*parts, text[start:]))


def _agreeing(text: str, at: int, secret: str) -> int:
    """How many characters of the secret are in the text from there on."""
    for count, (seen, known) in enumerate(zip(text[at : at + len(secret)], secret, strict=False)):
        if seen != known:
            return count
    return min(len(secret), len(text) - at)


def _escaped(secret: str) -> str:
    return secret.encode("unicode_escape").decode("ascii")
