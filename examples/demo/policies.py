"""What the demo's scripted models say: the code that a good model would write for this question, block by block.

They stand in for a model and for nothing else. The code really runs, in containers; the passages are really found by
it, sent over gRPC, answered over HTTP, counted and merged.
"""

from __future__ import annotations

from examples.demo.question import announced_version
from orchestrator.testing.scripted import ChatRequest, Policy, Reply, latency, sequence, with_faults

ROOT = [
    """I look at what there is before I plan.

```repl
print(type(context).__name__, len(context), "files,", f"{sum(map(len, context.values())):,} characters")
print(list(context)[:5])
```
""",
    """Too much to read in one go, so I deal it out: six parts of about the same size, each to a sub-call with a REPL of
its own, all six at the same time.

```repl
parts, sizes = [{} for _ in range(6)], [0] * 6
for path, text in sorted(context.items(), key=lambda item: -len(item[1])):
    smallest = sizes.index(min(sizes))
    parts[smallest][path] = text
    sizes[smallest] += len(text)

question = (
    "A passage is a line with the word 'removed' or 'removal' together with the line before and the line after it. "
    "How many passages announce a removal, for each Python version? Answer as JSON, such as {\\"3.12\\": 4}."
)
reports = llm_batch([question] * 6, contexts=parts, max_concurrent=6)
for size, report in zip(sizes, reports):
    print(f"{size:>10,} characters: {report}")
```
""",
    """Every part is in. I add them up.

```repl
import collections, json

total = collections.Counter()
for report in reports:
    total.update(json.loads(report))
ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
FINAL("\\n".join(f"{version}: {count}" for version, count in ordered))
```
""",
]

PART = [
    """First the passages, which plain code finds.

```repl
import re

passages = []
for path, text in context.items():
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.search(r"\\bremov(?:ed|al)\\b", line, re.IGNORECASE):
            passages.append(" ".join(part.strip() for part in lines[max(0, number - 1) : number + 2]))
print(len(passages), "passages in", len(context), "files")
```
""",
    """What each of them means is a question of language: I ask it of a model for all of them at once.

```repl
import collections, json

ask = "Which Python version does this passage announce a removal for? Answer with the version alone, or none.\\n\\n"
answers = llm_batch([ask + passage for passage in passages], max_concurrent=20)
counts = collections.Counter(answer.strip() for answer in answers if answer.strip() != "none")
FINAL(json.dumps(counts))
```
""",
]


def leaf(request: ChatRequest) -> Reply:
    """Reads the passage under the question, as a model would, with a regular expression, as a model would not."""
    return Reply(announced_version(request.last_user.partition("\n\n")[2]))


def policies() -> dict[str, Policy]:
    """By model name. A little latency makes them as slow as a quick model, so that the tree can be watched."""
    return {
        "scripted-root": with_faults(sequence(ROOT), latency(0.6)),
        "scripted-part": with_faults(sequence(PART), latency(0.4)),
        "scripted-leaf": with_faults(leaf, latency(0.15)),
    }
