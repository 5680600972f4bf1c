"""What a model is taught before it starts. Pure; depends on the depth and on how deep recursion goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from orchestrator.events import RlmStarted

_SMALLEST_HISTORY: Final = 8_000
_TIGHTER: Final = 4


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How an RLM is spoken to. Sizes are in characters, about four to a token.

    `instructions` are the user's own, for this depth; they stand last in the system prompt, where they win.
    """

    instructions: str = ""
    history_chars: int = 200_000  # replies and results together, before older ones are shortened
    stdout_chars: int = 10_000  # of one cell
    stderr_chars: int = 2_000  # a share of its own, so that a flood on stdout cannot hide it
    traceback_chars: int = 4_000
    sub_prompt_chars: int = 100_000  # what a prompt of a plain sub-call should stay below
    plain_calls: bool = False  # where sub-calls are recursive: whether the code may ask for a plain one
    plain_chars: int = 0  # up to this they are plain by themselves, unless the code insists; 0: none are

    def tightened(self) -> PromptStyle | None:
        """A shorter way to say the same, for a model whose window is too small; None when it cannot get shorter."""
        if self.history_chars <= _SMALLEST_HISTORY:
            return None
        return replace(
            self,
            history_chars=max(_SMALLEST_HISTORY, self.history_chars // _TIGHTER),
            stdout_chars=max(1_000, self.stdout_chars // _TIGHTER),
            stderr_chars=max(500, self.stderr_chars // _TIGHTER),
            traceback_chars=max(1_000, self.traceback_chars // _TIGHTER),
        )


_OPENING = """\
You answer a query by writing Python in a REPL, step by step. The data that the query is about is not in this \
conversation: it is the variable `context` in the REPL, and may be far larger than what you can read at once.

In each reply, think briefly, then write exactly one block:

```repl
print(type(context), len(context))
```

The block runs, and you are shown what it printed and the value of its last expression, cut to about {stdout:,} \
characters with head and tail kept. Variables, functions and imports stay from block to block; after an error too. \
Only blocks tagged `repl` run. There is no network and no `input()`.

The REPL has:
- `context`: the data. Its type, size, beginning and end are told with the query. `load_context()` returns it anew, \
should you have given the name to something else.
- `llm_query(prompt) -> str`: one question to a language model. {sub_call}
- `llm_batch(prompts, max_concurrent=10) -> list[str]`: many questions at once; answers in the order of the prompts.
- `llm_query(question, context=obj)`: hands over data (str, bytes, list, dict) without pasting it into the \
prompt{with_data} `llm_batch(prompts, contexts=[...])` does so for each prompt.
- `SHOW_VARS()`: your variables. `await allm_query(...)` and `await allm_batch(...)`: the same calls for asyncio code.
- `FINAL(value)`: ends the task; the value is your answer. `FINAL_VAR("name")`: the same with a variable's value. \
`answer = {{"content": value, "ready": True}}` does it too.

A sub-call that fails does not raise: its result is a str that starts with "Error: " and has `.failed == True` and \
`.reason`. Test with `getattr(result, "failed", False)`.

Parallel or sequential: questions that do not depend on one another belong in one `llm_batch`. Twenty calls of 3 s \
take 60 s in a loop of `llm_query`, 6 s with `llm_batch`: n calls of t seconds take ceil(n / max_concurrent) * t. Use \
`llm_query` for a single question, or when each depends on the answer before."""

_PLAIN_SUB_CALL = """\
It sees only what you send, has no REPL and no memory of other calls, and its window is limited: keep a prompt below \
about {limit:,} characters."""

_RECURSIVE_SUB_CALL = """\
It is an agent like you with a REPL of its own: your prompt is its `context`, it can write code and make sub-calls \
({below}). So it can work through large or many-step parts, but takes several model calls for each: give it whole \
sub-problems that state all they need, not single lines."""

_PLAIN_CHOICE = """\
 With `recursive=False`, `llm_query` and `llm_batch` ask a plain model instead: one call, no REPL, quick and \
cheap; for questions that need no code, on text below about {limit:,} characters."""

_PLAIN_BY_SIZE = """\
 A question of at most {chars:,} characters, its data included, goes to a plain model by itself; `rlm_query(prompt)`, \
or `recursive=True`, asks an agent however short it is."""

_CHOOSING = """\
Choose the cheapest way that can be right:
- Exact work (searching, counting, parsing, sorting, arithmetic): Python alone.
- A small context: print it and read it yourself.
- Meaning spread over a large context: split it along its own structure into chunks as large as a sub-call takes, ask \
about all of them in one `llm_batch`, then combine the answers with Python, or with one last `llm_query`."""

_CHOOSING_RECURSION = """\
- A part that needs code and several steps of its own: a sub-call for each such part."""

_RULES = """\
Look at the data before you decide on a way. Print what you need to see, not everything. Check results before you \
call FINAL: what you have not seen may be wrong. Never answer from a guess, and put nothing but the answer into FINAL. \
{budget}"""

_EXAMPLE = """\
Example. Query: "Which suppliers raised their prices, and when?" The context is a str of 2,000,000 characters of \
e-mails. First reply: look at it. Second:

```repl
mails = context.split("\\n\\nFrom: ")
chunks, size = [""], {chunk}
for mail in mails:
    if len(chunks[-1]) + len(mail) > size:
        chunks.append("")
    chunks[-1] += "\\n\\nFrom: " + mail
ask = "List each price increase by a supplier as 'supplier | date', one a line. If there is none: NONE.\\n\\n"
found = llm_batch([ask + chunk for chunk in chunks])
missing = [i for i, f in enumerate(found) if getattr(f, "failed", False)]
print(len(chunks), "chunks; failed:", missing)
print("\\n".join(found)[:3000])
```

Third, after reading what came back:

```repl
rows = {{line.strip() for f in found if not getattr(f, "failed", False) for line in f.splitlines() if "|" in line}}
FINAL("\\n".join(sorted(rows)))
```"""


def system_prompt(start: RlmStarted, style: PromptStyle) -> str:
    recursive = start.depth < start.max_depth - 1
    if recursive:
        below = start.max_depth - 2 - start.depth
        more = f"agents too, {below} more level{'s' if below > 1 else ''} down"
        levels = more if below else "plain models, without a REPL"
        sub_call = _RECURSIVE_SUB_CALL.format(below=levels)
        if style.plain_calls:
            sub_call += _PLAIN_CHOICE.format(limit=style.sub_prompt_chars)
        if style.plain_calls and style.plain_chars:
            sub_call += _PLAIN_BY_SIZE.format(chars=style.plain_chars)
        with_data = ": obj is its `context`, the question its query."
    else:
        sub_call = _PLAIN_SUB_CALL.format(limit=style.sub_prompt_chars)
        with_data = "; it still counts toward the window."
    parts = [
        _OPENING.format(stdout=style.stdout_chars, sub_call=sub_call, with_data=with_data),
        f"{_CHOOSING}\n{_CHOOSING_RECURSION}" if recursive else _CHOOSING,
        _RULES.format(budget=_budget(start)),
        _EXAMPLE.format(chunk=f"{style.sub_prompt_chars * 4 // 5:_}"),
    ]
    if style.instructions.strip():
        parts.append(f"Further instructions from the user:\n{style.instructions.strip()}")
    return "\n\n".join(parts)


def _budget(start: RlmStarted) -> str:
    plural = "s" if start.max_iterations > 1 else ""
    own = f"You have {start.max_iterations} iteration{plural}: replies, with or without code."
    if start.depth == 0:
        return f"{own} You are at depth 0, the root: your answer is the one that the user sees."
    # Deeper levels get fewer iterations and are paid for by their ancestors.
    return f"{own} You are a sub-call at depth {start.depth} of an agent that waits for your answer: be direct."
