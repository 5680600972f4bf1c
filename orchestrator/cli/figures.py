"""Numbers as people read them, in few columns."""

from __future__ import annotations

from orchestrator.values import Spent


def tokens(count: int) -> str:
    """At most six characters: 950, 12.3k, 4.56M."""
    if count < 1_000:
        return str(count)
    for divisor, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        value = count / divisor
        if value < 999.5:
            return (
                f"{value:.2f}{unit}"
                if value < 9.995
                else f"{value:.1f}{unit}"
                if value < 99.95
                else f"{value:.0f}{unit}"
            )
    return f"{count / 1e9:.0f}G"


def money(amount_usd: float) -> str:
    """$0.0012, $0.031, $1.23: two digits that count."""
    if amount_usd == 0:
        return "$0"
    if amount_usd < 0.01:
        return f"${amount_usd:.4f}"
    return f"${amount_usd:.3f}" if amount_usd < 1 else f"${amount_usd:,.2f}"


def cost(spent: Spent) -> str:
    """The cost, "unknown" when no call has a price, and with a plus sign when some have none."""
    if not spent.unpriced_calls:
        return money(spent.cost_usd)
    return f"{money(spent.cost_usd)}+" if spent.cost_usd else "unknown"


def priced(spent: Spent) -> str:
    """The cost, to stand in a sentence."""
    return "cost unknown" if cost(spent) == "unknown" else cost(spent)


def clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(amount: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def summary(spent: Spent) -> str:
    """One line on what was used."""
    parts = [count(spent.calls, "model call"), f"{tokens(spent.usage.total_tokens)} tokens"]
    parts.append(priced(spent))
    if spent.cached_calls:
        parts.insert(1, f"{spent.cached_calls:,} from the cache")
    if spent.failed_calls:
        parts.insert(1, f"{spent.failed_calls:,} failed")
    if spent.sandboxes:
        parts.append(count(spent.sandboxes, "sandbox", "sandboxes"))
    return " · ".join(parts)
