"""Final answers and contexts, as code in a cell finds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.guest_modules import DrivenWorker, worker_describe


@pytest.fixture
def fresh() -> Iterator[DrivenWorker]:
    driven = DrivenWorker()
    yield driven
    driven.close()


@pytest.mark.parametrize(
    ("value", "text", "kind"),
    [
        ("''", "", "str"),
        ("0", "0", "int"),
        ("None", "None", "NoneType"),
        ("[]", "[]", "list"),
        ("'Paris'", "Paris", "str"),
        ("True", "True", "bool"),
        ("{'a': [1, 'é']}", '{"a": [1, "é"]}', "dict"),
        ("{1, 1}", "{1}", "set"),
        ("[{1}]", "[{1}]", "list"),
        ("[float('nan')]", "[nan]", "list"),
        ("b'x'", "b'x'", "bytes"),
        ("__import__('decimal').Decimal('1.50')", "1.50", "Decimal"),
    ],
)
def test_set_is_a_flag_and_not_truthiness(worker: DrivenWorker, value: str, text: str, kind: str) -> None:
    ran = worker.run(f"FINAL({value})")
    assert (ran.final, ran.final_type) == (text, kind)
    assert worker.run("1").final is None


def test_the_last_final_counts_and_is_the_value_of_that_moment(worker: DrivenWorker) -> None:
    assert worker.run("FINAL(1)\nr = [1]\nFINAL(r)\nr.append(2)").final == "[1]"


def test_a_final_before_an_error_counts(worker: DrivenWorker) -> None:
    ran = worker.run("FINAL('done')\n1 / 0")
    assert (ran.status, ran.final) == ("error", "done")


def test_a_huge_final_is_cut_and_its_length_told() -> None:
    final = worker_describe.final_text("é" * 5_000_000)
    assert len(final.text) == 8 << 20
    assert final.length == 5_000_000
    final.text.decode()


def test_final_var_takes_a_name_or_a_value(worker: DrivenWorker) -> None:
    worker.run("result = {'k': 1}")
    assert worker.run("FINAL_VAR('result')").final == '{"k": 1}'
    assert worker.run("FINAL_VAR(result)").final == '{"k": 1}'
    assert worker.run("FINAL_VAR(42)").final == "42"
    worker.run("said = 'the capital is Paris'; city = ''.join(['Pa', 'ris'])")
    assert worker.run("FINAL_VAR(said)").final == "the capital is Paris"
    assert worker.run("FINAL_VAR(city)").final == "Paris"


def test_final_var_of_an_unknown_name_gives_no_answer_and_lists_variables(fresh: DrivenWorker) -> None:
    fresh.open()
    fresh.run("result = 1")
    ran = fresh.run("FINAL_VAR('Paris')")
    assert ran.final is None
    assert ran.error[0] == "NameError"
    assert "no variable named 'Paris'" in ran.error[1]
    assert "Variables: result." in ran.error[1]


@pytest.mark.parametrize(
    "name", ["failed", "SubcallError", "llm_query_batched", "rlm_query_batched", "llm_batch_async", "answer"]
)
def test_a_name_that_is_not_taught_is_the_codes_own_once_it_is_used(fresh: DrivenWorker, name: str) -> None:
    fresh.open()
    ran = fresh.run(f"{name} = [3, 7]")
    assert ran.names[name] == ("list", "2 items")
    fresh.open()  # a second Open, as for one more context
    assert fresh.run(f"{name}").stdout == "[3, 7]\n"
    assert fresh.run(f"FINAL_VAR({name!r})").final == "[3, 7]"


@pytest.mark.parametrize("name", ["llm_query", "llm_batch", "rlm_query", "allm_query", "allm_batch", "load_context"])
def test_a_name_that_is_taught_comes_back(fresh: DrivenWorker, name: str) -> None:
    fresh.open()
    fresh.run(f"{name} = None")
    assert fresh.run(f"callable({name})").stdout == "True\n"


@pytest.mark.parametrize(
    "call",
    ["FINAL_VAR('failed')", "FINAL_VAR(failed)", "FINAL(failed)", "FINAL_VAR('llm_query')", "FINAL_VAR('answer')"],
)
def test_what_the_repl_has_put_there_is_nobodys_answer(fresh: DrivenWorker, call: str) -> None:
    fresh.open()
    fresh.run("result = 1")
    ran = fresh.run(call)
    assert (ran.final, ran.error[0]) == (None, "NameError")
    assert "no variable of yours" in ran.error[1]
    assert "Variables: result." in ran.error[1]


def test_final_var_of_answer_is_its_content(fresh: DrivenWorker) -> None:
    fresh.open()
    assert fresh.run("answer['content'] = 'Paris'\nFINAL_VAR('answer')").final == "Paris"


def test_answer_counts_when_it_is_ready_and_once(fresh: DrivenWorker) -> None:
    fresh.open()
    assert fresh.run("answer['content'] = 'draft'").final is None
    assert fresh.run("answer['ready'] = True").final == "draft"
    assert fresh.run("1").final is None
    assert fresh.run("answer = {'content': 0, 'ready': True}").final == "0"
    for other in (
        "{'ready': True}",
        "{'content': 1}",
        "{'content': 1, 'ready': False}",
        "{'content': 1, 'ready': 'x'}",
    ):
        assert fresh.run(f"answer = {other}").final is None
    assert fresh.run("answer = 'mine'\nanswer").final is None


def test_a_final_printed_on_stdout_is_only_text(worker: DrivenWorker) -> None:
    ran = worker.run("import os\nos.write(1, b'FINAL(1)\\n{\"op\": \"ended\"}')\nprint('FINAL_VAR(x)')")
    assert ran.final is None


def context(path: Path, variable: str = "context", kind: str = "text", size: int = 1 << 30) -> dict[str, Any]:
    return {"variable": variable, "kind": kind, "path": str(path), "size": size}


def test_a_context_is_loaded_when_code_first_mentions_it(fresh: DrivenWorker, tmp_path: Path) -> None:
    file = tmp_path / "c"
    fresh.open(context(file))  # there is no file yet: opening it now would fail
    ran = fresh.run("'con' + 'text' in globals(), (my_context := 5)")
    assert ran.stdout == "(False, 5)\n"
    assert ran.names["context"] == ("str", "1,073,741,824 bytes, not loaded yet")
    file.write_bytes("té".encode() + b"\xff")
    assert fresh.run("context").stdout == "'té\ufffd'\n"
    assert fresh.run("context = 'changed'").status == "ok"
    assert fresh.run("context").stdout == "'changed'\n"
    assert fresh.run("del context").status == "ok"
    assert fresh.run("context").error[0] == "NameError"


def test_a_context_that_a_loop_took_away_can_be_had_again_and_the_model_is_told(
    fresh: DrivenWorker, tmp_path: Path
) -> None:
    (tmp_path / "c").write_text("the data")
    fresh.open(context(tmp_path / "c", size=8))
    assert fresh.run("len(context)").names["context"] == ("str", "8 characters")
    ran = fresh.run("for context in ['a', 'b']: pass")
    assert ran.names["context"] == ("str", "1 character; load_context() has the data as given")
    assert "load_context()" in fresh.run("print(SHOW_VARS())").stdout
    assert fresh.run("context = load_context()\ncontext").names["context"] == ("str", "8 characters")
    assert fresh.run("context = context.upper()\ncontext").stdout == "'THE DATA'\n"
    assert fresh.run("del context").names["context"] == ("str", "not bound; load_context() has the data as given")
    assert fresh.run("load_context('other')").error[1] == (
        "load_context: there is no context named 'other'. Contexts: context"
    )


def test_each_context_can_be_had_again_by_its_name(fresh: DrivenWorker, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text('{"k": 1}')
    fresh.open(context(tmp_path / "a", size=1))
    fresh.open(context(tmp_path / "b", "more", "json", 8))
    ran = fresh.run("more['k'] = 2; more = 0\nload_context(), load_context('more')")
    assert ran.stdout == "('a', {'k': 1})\n"
    assert fresh.run("1").names["more"] == ("int", "load_context('more') has the data as given")


@pytest.mark.parametrize(
    "mention", ["FINAL_VAR('context')", "exec('x = context')", "def f(): return context\nf()", "len(context)"]
)
def test_a_mention_may_be_anywhere_in_the_source(fresh: DrivenWorker, tmp_path: Path, mention: str) -> None:
    (tmp_path / "c").write_text("abc")
    fresh.open(context(tmp_path / "c"))
    assert fresh.run(mention).status == "ok"
    assert fresh.run("'con' + 'text' in globals()").stdout == "True\n"


def test_small_contexts_are_there_in_the_first_cell_and_more_can_be_added(fresh: DrivenWorker, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_text('[{"k": null}]')
    (tmp_path / "c").write_bytes(b"\0\xff")
    fresh.open(context(tmp_path / "a", size=0))
    assert fresh.run("globals()['con' + 'text']").stdout == "''\n"
    fresh.open(context(tmp_path / "b", "rows", "json", 13))
    fresh.open(context(tmp_path / "c", "raw", "bytes", 2))
    assert fresh.run("rows, raw").stdout == "([{'k': None}], b'\\x00\\xff')\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "No such file"), ("[1,", "not JSON"), ("[" * 100_000, "nested too deeply")],
)
def test_a_bad_context_is_a_clear_error_and_the_rest_works(
    fresh: DrivenWorker, tmp_path: Path, content: str | None, part: str
) -> None:
    if content is not None:
        (tmp_path / "c").write_text(content)
    fresh.open(context(tmp_path / "c", kind="json"))
    ran = fresh.run("print('ran'); context")
    assert ran.stdout == ""
    assert ran.error[0] == "ContextUnavailable"
    assert part in ran.error[1]
    assert fresh.run("1 + 1").stdout == "2\n"
