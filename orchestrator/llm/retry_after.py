"""How long an API asks to be left alone. Pure."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the API asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as an HTTP date.

    RFC 9110 section 10.2.3. None when neither is there or can be read. Not negative.
    """
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / scale
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - now)
