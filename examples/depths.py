"""`python -m examples.depths`: the same question with a recursion of two and of three levels.

The context is a chronicle: years, each with months, each with entries in plain words. At depth 2 a sub-call for each
year reads all its entries; at depth 3 it hands its months to sub-calls of its own. Runs against the real API when
OPENAI_API_KEY is set, and else against scripted models.
"""

from __future__ import annotations

import re
import sys

from examples.models import model_settings
from orchestrator import RLM
from orchestrator.testing.scripted import ChatRequest, Policy, Reply, constant

Chronicle = dict[str, dict[str, list[str]]]
QUERY = "How many ships were lost in all these years? Answer with the number alone."

OVER_PARTS = """\
parts = list(context.values())
counts = llm_batch(["How many ships were lost in these entries? The number alone."] * len(parts), contexts=parts)
print(dict(zip(context, counts)))
FINAL(sum(int(count) for count in counts))
"""
OVER_ENTRIES = """\
entries = context if isinstance(context, list) else [entry for month in context.values() for entry in month]
counts = llm_batch([f"How many ships does this say were lost? The number alone.\\n\\n{entry}" for entry in entries])
FINAL(sum(int(count) for count in counts))
"""
_NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4}


def chronicle(years: int = 3, months: int = 4) -> tuple[Chronicle, int]:
    """The context, and how many ships were lost in it."""
    names, lost = list(_NUMBERS), 0
    told: Chronicle = {}
    for year in range(years):
        for month in range(months):
            number = (year * 2 + month) % len(names)
            lost += number
            entries = [
                f"In a storm of the month {month + 1}, {names[number]} ships went down.",
                "The harvest was good.",
            ]
            told.setdefault(str(1601 + year), {})[f"month {month + 1}"] = entries
    return told, lost


def leaf(request: ChatRequest) -> Reply:
    """Reads an entry with a regular expression, where a model would understand it."""
    found = re.search(r"(\w+) ships went down", request.last_user)
    return Reply(str(_NUMBERS[found.group(1)] if found else 0))


def policies(depth: int) -> dict[str, Policy]:
    """All depths but the last hand their parts on; the last one reads the entries."""
    codes = [OVER_PARTS] * (depth - 1) + [OVER_ENTRIES]
    rlms = {f"scripted-{at}": constant(f"```repl\n{code}```\n") for at, code in enumerate(codes)}
    return {**rlms, "scripted-leaf": leaf}


def main() -> int:
    context, lost = chronicle()
    right = True
    for depth in (2, 3):
        with model_settings(policies(depth)) as settings:
            result = RLM(max_depth=depth, **settings).run(context, QUERY)
        right &= result.answer.strip() == str(lost)
        print(f"depth {depth}: {result.answer} ships ({lost} by a plain loop), {result.seconds:.1f} s")
        for at, spent in sorted(result.by_depth.items()):
            where = f"{spent.sandboxes} sandboxes" if at < depth else "plain calls"
            print(f"  depth {at}: {spent.calls:3} model calls, {where}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
