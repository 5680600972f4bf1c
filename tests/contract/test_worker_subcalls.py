"""llm_query, llm_batch and their twins, as code in a cell finds them; answered by the test."""

from __future__ import annotations

import json

import pytest

from tests.unit.asks_server import (
    CANCELLED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNKNOWN,
    Asked,
    GivenUp,
    Outcome,
    Question,
    response,
)
from tests.unit.guest_modules import DrivenWorker


def upper(asked: list[Question]) -> list[Outcome]:
    return [("", prompt.upper()) for prompt, _, _ in asked]


def broken(asked: list[Question]) -> list[Outcome]:
    return [
        ("budget", "no tokens are left") if "bad" in prompt else ("", "Error: says the model") for prompt, _, _ in asked
    ]


def test_an_answer_is_a_plain_str(worker: DrivenWorker) -> None:
    ran = worker.run("a = llm_query('hi')\na, type(a) is str, failed(a)", upper)
    assert ran.stdout == "('HI', True, False)\n"


def test_answers_come_in_the_order_of_the_prompts_and_equal_questions_are_asked_once(worker: DrivenWorker) -> None:
    worker.asked.clear()
    ran = worker.run("llm_batch(['a', 'b', 'a', 'c', 'b'], max_concurrent=2)", upper)
    assert ran.stdout == "['A', 'B', 'A', 'C', 'B']\n"
    assert [prompt for prompt, _, _ in worker.asked[0]] == ["a", "b", "c"]
    assert len(worker.asked) == 1


def test_the_same_prompt_with_another_context_is_another_question(worker: DrivenWorker) -> None:
    worker.asked.clear()
    worker.run("llm_batch(['a', 'a', 'a'], contexts=['x', b'x', 'x'])", upper)
    assert worker.asked == [[("a", "text", b"x"), ("a", "bytes", b"x")]]


def test_contexts_keep_their_kind(worker: DrivenWorker) -> None:
    worker.asked.clear()
    worker.run("llm_batch(['q'] * 4, contexts=['té', b'\\xff', {'k': [1, None, 'é']}, None])")
    (asked,) = worker.asked
    assert [(kind, data) for _, kind, data in asked[:2]] == [("text", "té".encode()), ("bytes", b"\xff")]
    assert (asked[2][1], json.loads(asked[2][2])) == ("json", {"k": [1, None, "é"]})
    assert asked[3] == ("q", "", b"")


def test_an_empty_list_gives_an_empty_list_without_a_call(worker: DrivenWorker) -> None:
    worker.asked.clear()
    assert worker.run("llm_batch([]), await allm_batch([])").stdout == "([], [])\n"
    assert worker.asked == []


def test_a_failed_slot_is_an_error_string_that_a_models_own_words_are_not(worker: DrivenWorker) -> None:
    code = (
        "good, bad = llm_batch(['good', 'bad'])\n"
        "import copy, json, pickle\n"
        "same = [copy.deepcopy(bad), pickle.loads(pickle.dumps(bad)), bad]\n"
        "print(good[:7] == bad[:7] == 'Error: ', failed(good), failed(bad), isinstance(bad, str))\n"
        "print(bad.reason, bad.failed, [(b.reason, b) for b in same], json.dumps([bad]))"
    )
    lines = worker.run(code, broken).stdout.splitlines()
    assert lines[0] == "True False True True"
    text = "Error: no tokens are left"
    assert lines[1] == f"budget True {[('budget', text)] * 3} {json.dumps([text])}"


def test_strict_raises_and_names_the_slot(worker: DrivenWorker) -> None:
    ran = worker.run("llm_batch(['good', 'bad', 'bad'], strict=True)", broken)
    assert ran.error[0] == "SubcallFailed"
    assert ran.error[1] == "llm_batch: prompts[1] (of 2) failed (budget): no tokens are left"
    assert (
        worker.run("try:\n    llm_query('bad', strict=True)\nexcept SubcallFailed as e: print(e.reason)", broken).stdout
        == "budget\n"
    )


def test_strict_names_the_failure_and_not_what_was_given_up_for_it(worker: DrivenWorker) -> None:
    def stopped(asked: list[Question]) -> list[Outcome]:
        return [("", "fine"), ("cancelled", "another failed before"), ("model", "it is down")]

    ran = worker.run("llm_batch(['a', 'b', 'c'], strict=True)", stopped)
    assert ran.error[1] == "llm_batch: prompts[2] (of 3) failed (model): it is down"


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        ("llm_batch('abc')", "TypeError", ["prompts must be a list of str, not str", "[prompt]"]),
        ("llm_batch(p for p in 'ab')", "TypeError", ["not generator", "list(...)"]),
        ("llm_batch({'a'})", "TypeError", ["not set"]),
        ("llm_batch(None)", "TypeError", ["not NoneType"]),
        ("llm_batch(['a', 3])", "TypeError", ["prompts[1] must be a str, not int", "str(...)"]),
        ("llm_query(None)", "TypeError", ["prompt must be a str, not NoneType"]),
        ("llm_query([{'role': 'user'}])", "TypeError", ["not list", "json.dumps"]),
        ("llm_batch(['a'], max_concurrent=0)", "ValueError", ["max_concurrent must be at least 1, not 0"]),
        ("llm_batch(['a'], max_concurrent=-3)", "ValueError", ["not -3"]),
        ("llm_batch(['a'], max_concurrent=True)", "TypeError", ["must be an int, not bool"]),
        ("llm_batch(['a'], max_concurrent=2.0)", "TypeError", ["must be an int, not float"]),
        ("llm_batch(['a'], max_concurrent=None)", "TypeError", ["not NoneType"]),
        ("llm_batch(['a'] * 10_001)", "ValueError", ["10,001 items", "10,000"]),
        ("llm_batch(['a', 'b'], contexts=['x'])", "ValueError", ["contexts has 1 items, but there are 2 prompts"]),
        ("llm_batch(['a'], contexts='x')", "TypeError", ["contexts must be a list"]),
        ("llm_query('a', context=object())", "TypeError", ["context must be a str, bytes or what JSON can hold"]),
        ("llm_query('a', context=[float('nan')])", "TypeError", ["JSON has no NaN and no infinity", "None"]),
        ("llm_query('a', context={'k': float('-inf')})", "TypeError", ["no infinity"]),
        ("llm_query('a', context={1: 'a', '1': 'b'})", "TypeError", ["must have str keys", "not int", "str(key)"]),
        ("llm_query('a', context=[({'k': {None: 1}},)])", "TypeError", ["must have str keys", "not NoneType"]),
        ("llm_query('a', recursive='no')", "TypeError", ["recursive must be True, False or None, not str"]),
        ("llm_query('a', context={1, 2})", "TypeError", ["not set", "list(...)"]),
        ("llm_query('a' * 51_000_000 + 'é')", "ValueError", ["51,000,002 bytes", "50,331,648"]),
        ("await allm_query(3)", "TypeError", ["allm_query: prompt must be a str, not int"]),
    ],
)
def test_wrong_arguments_name_the_argument_the_rule_and_the_remedy(
    worker: DrivenWorker, call: str, kind: str, parts: list[str]
) -> None:
    worker.asked.clear()
    ran = worker.run(call)
    assert ran.error[0] == kind
    for part in parts:
        assert part in ran.error[1]
    assert "worker_" not in ran.error[2]
    assert worker.asked == []


def test_a_tuple_of_prompts_and_a_str_subclass_are_accepted(worker: DrivenWorker) -> None:
    assert worker.run("class S(str): pass\nllm_batch(('a', S('b')))", upper).stdout == "['A', 'B']\n"


def test_all_taught_names_ask(worker: DrivenWorker) -> None:
    code = (
        "print(llm_query_batched(['a']), rlm_query('b'), rlm_query_batched(['c']))\n"
        "print(await llm_query_async('d'), await llm_batch_async(['e']))"
    )
    assert worker.run(code, upper).stdout == "['A'] B ['C']\nD ['E']\n"


def test_many_threads_and_tasks_ask_at_once_within_the_bound_on_calls_in_flight(worker: DrivenWorker) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(100) as pool: a = list(pool.map(llm_query, map(str, range(200))))\n"
        "import asyncio\nb = await asyncio.gather(*(allm_query(str(n)) for n in range(200)))\n"
        "a == b == [str(n) for n in range(200)]"
    )
    assert worker.run(code).stdout == "True\n"
    held = DrivenWorker()
    try:
        held.open()
        held.start("import asyncio\nawait asyncio.gather(*(allm_query(str(n)) for n in range(100)))")
        calls = held.calls(64)
        # The 65th is sent when one has been answered, and not before: what comes next was caused by this answer.
        calls["0"].answer(("", "0"))
        assert set(held.calls(1)) == {"64"}
    finally:
        held.close()


def test_a_cancelled_task_takes_its_question_back() -> None:
    held = DrivenWorker()
    try:
        held.open()
        held.start(
            "import asyncio\nt = asyncio.ensure_future(allm_query('q'))\nawait asyncio.sleep(0)\nt.cancel()\n"
            "await asyncio.wait([t])"
        )
        stream = held.calls(1)["q"].stream
        assert held.receive() == GivenUp(stream)
        assert held.end().status == "ok"
    finally:
        held.close()


def test_a_thread_that_waits_when_its_cell_ends_is_told() -> None:
    code = (
        "import threading\nheard = []\n"
        "def ask():\n    try: llm_query('late')\n    except SubcallFailed as e: heard.append(e.reason)\n"
        "t = threading.Thread(target=ask); t.start(); llm_query('main')"
    )
    held = DrivenWorker()
    try:
        held.open()
        held.start(code)
        calls = held.calls(2)
        calls["main"].answer(("", "a"))
        assert held.end().status == "ok"
        assert held.given_up == {calls["late"].stream}
        assert held.run("t.join(); heard").stdout == "['ended']\n"
    finally:
        held.close()


@pytest.mark.parametrize("status", [INVALID_ARGUMENT, RESOURCE_EXHAUSTED])
def test_a_call_that_the_host_refuses_is_a_value_error(worker: DrivenWorker, status: int) -> None:
    worker.start("llm_query('q')")
    worker.calls(1)["q"].refuse(status, "at most 5 %, é\n")
    assert worker.end().error[:2] == ("ValueError", "llm_query: at most 5 %, é\n")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (CANCELLED, "ended"),
        (FAILED_PRECONDITION, "ended"),
        (UNKNOWN, "sandbox"),
        (INTERNAL, "sandbox"),
        (UNAVAILABLE, "sandbox"),
    ],
)
def test_a_call_that_the_host_fails_raises_and_says_why(worker: DrivenWorker, status: int, reason: str) -> None:
    worker.start("try: await allm_query('q')\nexcept SubcallFailed as e: print(e.reason, e)")
    worker.calls(1)["q"].refuse(status, "the reason")
    assert worker.end().stdout == f"{reason} allm_query: the reason\n"


@pytest.mark.parametrize("message", [b"", b"\xff", response(("", "a")), response(*[("", "a")] * 3)])
def test_an_answer_that_is_none_raises(worker: DrivenWorker, message: bytes) -> None:
    worker.start("try: llm_batch(['p', 'q'])\nexcept SubcallFailed as e: print(e.reason)")
    call = worker.receive()
    assert isinstance(call, Asked)
    call.answer_with(message)
    assert worker.end().stdout == "sandbox\n"


def test_without_queries_only_the_final_functions_are_there() -> None:
    held = DrivenWorker()
    try:
        held.open(queries=False)
        assert held.run("'llm_query' in globals(), 'allm_batch' in globals(), callable(FINAL)").stdout == (
            "(False, False, True)\n"
        )
    finally:
        held.close()


def test_the_functions_explain_themselves(worker: DrivenWorker) -> None:
    text = worker.run("help(llm_batch); help(llm_query)").stdout
    assert "max_concurrent: 'int' = 10" in text
    assert "SubcallError" in text
