"""`python -m examples.needle`: find one sentence in a million lines, without a model reading a million lines.

Runs against the real API when OPENAI_API_KEY is set, and else against scripted models.
"""

from __future__ import annotations

import random
import re
import sys

from examples.models import model_settings
from orchestrator import RLM
from orchestrator.testing.scripted import ChatRequest, Policy, Reply, sequence

LINES = 1_000_000
QUERY = "Somewhere in these lines a sentence says what opens the red door. What is it that opens it? One word."
WORDS = ("the", "of", "a", "door", "window", "blue", "old", "small", "key", "stone", "river", "garden", "lies", "near")
DECOYS = 60  # lines about the red door that say nothing of what opens it

ROOT = [
    """A million lines are not for reading. What code can tell: which of them could matter at all?

```repl
lines = context.splitlines()
wanted = [n for n, line in enumerate(lines) if "red door" in line and "open" in line]
print(f"{len(lines):,} lines, of them {len(wanted)} with a red door and an opening")
```
""",
    """Few enough to have each read with the lines around it, all at the same time.

```repl
ask = "What opens the red door, by this passage? One word, or 'unknown'.\\n\\n"
answers = llm_batch([ask + "\\n".join(lines[max(0, n - 1) : n + 2]) for n in wanted])
known = [answer.strip() for answer in answers if answer.strip() != "unknown"]
print(known)
FINAL(known[0] if len(set(known)) == 1 else "unknown")
```
""",
]


def haystack(lines: int = LINES, seed: int = 7) -> tuple[str, str]:
    """The text, and the word to be found in it."""
    chance = random.Random(seed)
    word = chance.choice(["lantern", "violin", "compass", "thimble"])
    text = [" ".join(chance.choices(WORDS, k=8)) for _ in range(lines)]
    for number in chance.sample(range(lines), DECOYS):
        text[number] += ", and the red door did not open"
    text[chance.randrange(lines)] = f"It is well known that only the {word} will ever open the red door."
    return "\n".join(text), word


def leaf(request: ChatRequest) -> Reply:
    """Reads a passage with a regular expression, where a model would understand it."""
    found = re.search(r"only the (\w+) will ever open the red door", request.last_user)
    return Reply(found.group(1) if found else "unknown")


def policies() -> dict[str, Policy]:
    return {"scripted-root": sequence(ROOT), "scripted-leaf": leaf}


def main() -> int:
    text, word = haystack()
    with model_settings(policies()) as settings:
        result = RLM(**settings).run(text, QUERY)
    print(result.answer)
    tokens = result.spent.usage.total_tokens
    print(
        f"\nIt is {word!r}. The context has {len(text):,} characters; the models read and wrote {tokens:,} tokens "
        f"in {result.spent.calls} calls, {result.seconds:.1f} s.",
        file=sys.stderr,
    )
    return 0 if word in result.answer.lower() else 1


if __name__ == "__main__":
    sys.exit(main())
