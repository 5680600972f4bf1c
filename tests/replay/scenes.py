"""The runs that are kept: what their models say, word for word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.values import FinishReason, Message, Reply

LOG = "\n".join(f"2024-03-{day:02d} supplier {'ABC'[day % 3]} delivered {day * 7} units" for day in range(1, 29))


@dataclass(frozen=True, slots=True)
class Scene:
    """Each RLM of a depth says the same, reply by reply; what a plain sub-call says depends on its prompt alone."""

    name: str
    query: str
    context: str
    max_depth: int
    max_iterations: int
    rlm_replies: Callable[[int], Sequence[str | Reply]]  # of an RLM at this depth
    leaf_reply: Callable[[str], str | Reply]


def _plain(depth: int) -> Sequence[str | Reply]:
    return (
        "I look at it first.\n\n```repl\nlines = context.splitlines()\nprint(len(lines), lines[0])\n```",
        "Hm, let me think about that.",
        "```python\nsketch = 1\n```\n\nNow for real:\n\n```repl\nlines[99]\n```\n```repl\nkept = len(lines)\n```",
        "```repl\nparts = ['\\n'.join(lines[i:i + 10]) for i in range(0, len(lines), 10)]\n"
        "found = llm_batch([f'Who delivers?\\n{p}' for p in parts + parts[:1]], max_concurrent=1)\nprint(found)\n```",
        "FINAL_VAR(fund)",
        Reply(
            "```repl\ntotal = sum(int(l.split()[4]) for l in lines)\nprint(total)\n```\n```repl\nprint('cu",
            FinishReason.LENGTH,
            None,
            "recorded",
        ),
        "",
        "```repl\nFINAL(f'{total} units, {kept} deliveries')\n```\n```repl\nprint('never runs')\n```",
    )


def _plain_leaf(prompt: str) -> str | Reply:
    if "2024-03-21" in prompt:
        return Reply("I cannot say.", FinishReason.REFUSAL, None, "recorded")
    return "A, B and C"


def _nested(depth: int) -> Sequence[str | Reply]:
    if depth == 0:
        return (
            "```repl\nhalves = context[:len(context) // 2], context[len(context) // 2:]\n"
            "counts = [llm_query('Count the deliveries.', context=half) for half in halves]\nprint(counts)\n```",
            "Not sure yet.",
            "The halves have these.\n\nFINAL_VAR('counts')",
        )
    return (
        "```repl\nn = context.count('delivered')\nword = llm_query(f'Say {n} in words.')\n```",
        "Still thinking.",
        "Thinking on.",
        "About as many as the words say.\nFINAL(some)",
    )


SCENES = (
    Scene("depth_1", "How much was delivered?", LOG, 1, 12, _plain, _plain_leaf),
    Scene("depth_2", "How many deliveries in each half?", LOG, 2, 3, _nested, lambda prompt: prompt.upper()),
)


class Actor:
    """Plays a scene as a policy: each conversation gets the replies of its depth, one after another."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __call__(self, messages: Sequence[Message]) -> str | Reply:
        if len(messages) == 1:  # a plain sub-call has no system prompt
            return self._scene.leaf_reply(messages[0].content)
        depth = 1 if "sub-call at depth 1" in messages[0].content else 0
        said: Iterator[Message] = (message for message in messages if message.role == "assistant")
        return self._scene.rlm_replies(depth)[sum(1 for _ in said)]
