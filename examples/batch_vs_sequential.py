"""`python -m examples.batch_vs_sequential`: the same 20 questions, one after the other and ten at a time.

Runs against the real API when OPENAI_API_KEY is set, and else against scripted models that take 1 s to answer.
"""

from __future__ import annotations

import json
import sys

from examples.models import model_settings
from orchestrator import RLM
from orchestrator.testing.scripted import Policy, constant, latency, with_faults

CALLS = 20
AT_A_TIME = 10
LEAF_SECONDS = 1.0

CODE = f"""\
import json, time

def seconds(work):
    began = time.monotonic()
    answers = work()
    assert len(answers) == {CALLS}
    return time.monotonic() - began

# Numbered, or equal questions would be asked once.
one_by_one = [f"Say the number {{n}}." for n in range({CALLS})]
at_once = [f"Say the number {{n}} in words." for n in range({CALLS})]
FINAL(json.dumps({{
    "sequential": seconds(lambda: [llm_query(question) for question in one_by_one]),
    "batch": seconds(lambda: llm_batch(at_once, max_concurrent={AT_A_TIME})),
}}))
"""
QUERY = f"Run exactly this code in one block; it gives the final answer itself.\n\n{CODE}"


def policies(leaf_seconds: float = LEAF_SECONDS) -> dict[str, Policy]:
    return {
        "scripted-root": constant(f"```repl\n{CODE}```\n"),
        "scripted-leaf": with_faults(constant("a number"), latency(leaf_seconds)),
    }


def main() -> int:
    with model_settings(policies()) as settings:
        answer = RLM(**settings).completion(query=QUERY)
    times = json.loads(answer)
    print(f"{CALLS} x llm_query, one after the other   {times['sequential']:6.2f} s")
    print(f"llm_batch, {AT_A_TIME} at a time              {times['batch']:6.2f} s")
    print(f"that is {times['sequential'] / times['batch']:.1f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
