"""Replies are read line by line as CommonMark reads them; see `orchestrator.rlm.fences` for where more is tolerated."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rlm.final_text import FinalText, FinalVariable
from orchestrator.rlm.parsing import answer_in, parse_reply


def codes(text: str) -> list[str]:
    return [block.code for block in parse_reply(text).blocks]


def test_a_repl_block_runs() -> None:
    assert codes("First I look.\n\n```repl\nprint(1)\nprint(2)\n```\n\nThen more.") == ["print(1)\nprint(2)"]


def test_all_blocks_are_found_in_order() -> None:
    assert codes("```repl\na = 1\n```\nand\n```repl\nb = 2\n```") == ["a = 1", "b = 2"]


@pytest.mark.parametrize("tag", ["python", "py", "Python", "", "python title='x.py'"])
def test_python_and_bare_blocks_run_when_there_is_no_repl_block(tag: str) -> None:
    assert codes(f"```{tag}\nx = 1\n```") == ["x = 1"]


def test_python_blocks_are_ignored_beside_a_repl_block_and_told() -> None:
    parsed = parse_reply("```python\nsketch()\n```\n```repl\nrun()\n```\n```\nbare()\n```")
    assert [block.code for block in parsed.blocks] == ["run()"]
    assert [(block.tag, block.line) for block in parsed.ignored_blocks] == [("python", 1), ("", 7)]


def test_other_languages_are_ignored() -> None:
    parsed = parse_reply("```json\n{}\n```\n```bash\nls\n```")
    assert not parsed.blocks
    assert [block.tag for block in parsed.ignored_blocks] == ["json", "bash"]


def test_an_info_string_may_have_more_words() -> None:
    assert codes("```repl linenos=true\nx\n```") == ["x"]


def test_an_empty_block_does_not_swallow_the_next() -> None:
    parsed = parse_reply("```repl\n```\ntext\n```repl\nx = 1\n```")
    assert [block.code for block in parsed.blocks] == ["x = 1"]
    assert [block.line for block in parsed.ignored_blocks] == [1]


def test_a_longer_fence_holds_shorter_ones() -> None:
    assert codes('````repl\ns = """\n```\n"""\n````') == ['s = """\n```\n"""']


def test_the_closing_fence_may_be_longer_but_not_shorter() -> None:
    assert codes("````repl\nx\n`````\nafter") == ["x"]
    assert codes("````json\n{}\n```\n````\n```repl\ny\n```") == ["y"]


def test_tildes_fence_too_and_do_not_mix_with_backticks() -> None:
    assert codes('~~~repl\ns = "```"\n```\n~~~') == ['s = "```"\n```']


def test_a_tilde_info_string_may_hold_backticks_and_a_backtick_one_may_not() -> None:
    assert codes("~~~repl `x`\ny\n~~~") == ["y"]
    assert parse_reply("```repl x```\nFINAL(1)").textual_final == FinalText("1")


def test_an_unterminated_block_runs_to_the_end() -> None:
    (block,) = parse_reply("Now:\n```repl\nx = 1\nprint(x)").blocks
    assert block.code == "x = 1\nprint(x)"
    assert not block.closed


def test_a_fence_inside_a_string_on_one_line_is_code() -> None:
    code = "parts = text.split('```')\nprint(f'```{parts}```')"
    assert codes(f"```repl\n{code}\n```") == [code]


def test_a_fence_at_a_line_start_inside_a_triple_quoted_string_is_code() -> None:
    code = 'prompt = """Answer as\n```json\n{"a": 1}\n```\nonly."""\nllm_query(prompt)'
    ast.parse(code)
    assert codes(f"```repl\n{code}\n```\nThat is all.") == [code]


def test_quotes_in_comments_and_strings_do_not_open_a_triple_quoted_string() -> None:
    code = "x = 1  # don't say \"\"\" here\ny = \"it's '''\"\nz = 'a\\'\"\"\"b'"
    ast.parse(code)
    assert codes(f"```repl\n{code}\n```\n```repl\nz\n```") == [code, "z"]


def test_a_string_that_never_ends_does_not_swallow_the_next_block() -> None:
    assert codes('```repl\ns = """oops\n```\nthen\n```repl\nx = 1\n```') == ['s = """oops', "x = 1"]
    assert codes('```repl\ns = """oops\n```\n```repl\nx = 1  # """\n```') == ['s = """oops', 'x = 1  # """']
    assert codes('```repl\ns = """oops\n```\nno more code') == ['s = """oops']


def test_a_fence_that_follows_code_without_a_line_break_closes() -> None:
    assert codes("```repl\nx=1```") == ["x=1"]
    assert codes("```repl\nx=1```\n\nand\n```repl\ny\n```") == ["x=1", "y"]


def test_backticks_at_the_end_of_a_string_or_comment_do_not_close() -> None:
    code = "s = '```'\nt = 1  # like ```\nu = 2"
    assert codes(f"```repl\n{code}\n```") == [code]


@pytest.mark.parametrize("indent", ["  ", "   ", "     ", "\t"])
def test_an_indented_fence_takes_its_indent_off_the_code(indent: str) -> None:
    lines = ["```repl", "if x:", "    y()", "```"]
    assert codes("\n".join(indent + line for line in lines)) == ["if x:\n    y()"]


def test_a_block_in_a_list_item() -> None:
    assert codes("1. Look:\n\n   ```repl\n   for a in b:\n       c\n   ```\n2. Go on") == ["for a in b:\n    c"]
    assert codes("- ```repl\n  x = 1\n  y = 2\n  ```\n- next") == ["x = 1\ny = 2"]


def test_a_closing_fence_indented_more_than_three_columns_is_code() -> None:
    # CommonMark example 136; a triple-quoted string keeps this valid Python.
    code = "s = '''\n    ```\n'''"
    assert codes(f"```repl\n{code}\n```") == [code]


def test_code_that_is_indented_as_a_whole_is_dedented() -> None:
    assert codes("```repl\n    x = 1\n    if x:\n        y = 2\n```") == ["x = 1\nif x:\n    y = 2"]


def test_windows_line_ends() -> None:
    assert codes("```repl\r\nx = 1\r\ny = 2\r\n```\r\n") == ["x = 1\ny = 2"]


def test_code_in_the_reasoning_of_a_reply_does_not_run() -> None:
    reply = "<think>\nMaybe\n```repl\nboom()\n```\nFINAL(no)\n</think>\n```repl\nx\n```"
    assert codes(reply) == ["x"]
    assert parse_reply("<think>\n```repl\nboom()\n```\n").blocks == ()


@pytest.mark.parametrize("closing", ["\n</think>\n\n", "</think>\n", "\n </think> and then\n"])
def test_reasoning_whose_opening_tag_the_template_wrote_is_skipped(closing: str) -> None:
    reply = f"maybe try\n```repl\nboom()\n```\nFINAL(no)\nno.{closing}```repl\nx\n```"
    assert codes(reply) == ["x"]
    parsed = parse_reply(f"```repl\nboom()\n```{closing}FINAL(42)")
    assert (parsed.blocks, parsed.textual_final) == ((), FinalText("42"))
    assert answer_in(f"hm{closing}42").endswith("42")


@pytest.mark.parametrize(
    "code", ["said = reply.split('</think>')[-1]", "tag = '</think>'", "re.sub('<think>.*</think>', '', s)\n#</think>"]
)
def test_code_that_takes_reasoning_apart_runs(code: str) -> None:
    assert codes(f"I clean them.\n```repl\n{code}\n```") == [code]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("FINAL(42)", "42"),
        ("I am done.\n  FINAL(42)\n", "42"),
        ("FINAL( the answer )", "the answer"),
        ("FINAL(42).", "42"),
        ("FINAL(f(x) = (x + 1))", "f(x) = (x + 1)"),
        ("FINAL(line one\nline two (with more)\nline three)", "line one\nline two (with more)\nline three"),
        ('FINAL("a) b")', "a) b"),
        ("FINAL('a) b')", "a) b"),
        ('FINAL("""one\n(two\nthree""")', "one\n(two\nthree"),
        ("FINAL(It's 5 o'clock)", "It's 5 o'clock"),
        ('FINAL(["a)", "b"])', '["a)", "b"]'),
        ('FINAL("say \\"hi\\"\\n")', 'say "hi"\n'),
        ('FINAL("a" or "b")', '"a" or "b"'),
        ('FINAL("")', ""),
        ("FINAL()", ""),
        ("FINAL(None)", "None"),
        ("FINAL(0)", "0"),
        ("FINAL(open (never closed\nFINAL(second)", "second"),
        ("FINAL(6\" nails)", '6" nails'),
    ],
)  # fmt: skip
def test_a_textual_final(text: str, answer: str) -> None:
    assert parse_reply(text).textual_final == FinalText(answer)


@pytest.mark.parametrize(
    "text",
    [
        "I will call FINAL(42) later",
        "FINAL(42) is what I would say if I were sure",
        "FINAL(never closed",
        "FINAL(a (b)",
        "final(42)",
        "FINAL (42)",
        "FINAL_ANSWER(42)",
        "> FINAL(42)",
        "",
    ],
)
def test_what_is_no_textual_final(text: str) -> None:
    assert parse_reply(text).textual_final is None


@pytest.mark.parametrize("text", ["FINAL_VAR(name)", "FINAL_VAR('name')", 'FINAL_VAR( "name" )'])
def test_a_textual_final_var_becomes_code(text: str) -> None:
    assert parse_reply(text).textual_final == FinalVariable("FINAL_VAR('name')")


def test_a_textual_final_var_of_an_expression_is_evaluated_in_the_repl() -> None:
    assert parse_reply("FINAL_VAR(rows[0])").textual_final == FinalVariable("FINAL_VAR(rows[0])")


@pytest.mark.parametrize("block", ["```repl\nx = 1\n```", "```json\n{}\n```", "```\nFINAL(1)\n```", "```repl\nx = 1"])
def test_a_guessed_final_beside_code_does_not_count(block: str) -> None:
    assert parse_reply(f"{block}\n").textual_final is None
    assert parse_reply(f"FINAL(guess)\n{block}").textual_final is None


def test_the_answer_in_last_words() -> None:
    assert answer_in("FINAL(42)") == "42"
    assert answer_in("So:\n```repl\nmore()\n```\nFINAL(42)") == "42"
    assert answer_in('```repl\nFINAL("forty-two")\n```') == "forty-two"
    assert answer_in(" It is 42. \n") == "It is 42."
    assert answer_in("<think>hm</think>\n42") == "42"


# --- for all texts ----------------------------------------------------------------------------------------------

_PIECES = st.sampled_from(
    [
        *("```", "````", "~~~", "repl", "python", "json", "\n", "\n", " ", "    ", "\t", "'''", '"""', "'", '"', "#"),
        *("FINAL(", "FINAL_VAR(", ")", "(", "x = 1", "- ", "1. ", "<think>", "</think>", "\r", "\u2028", "\x00", "\\"),
    ]
)
_REPLIES = st.lists(_PIECES | st.text(max_size=5), max_size=60).map("".join)


@given(_REPLIES)
def test_every_text_has_a_reading(text: str) -> None:
    parsed = parse_reply(text)
    assert not ((parsed.blocks or parsed.ignored_blocks) and parsed.textual_final)
    assert all(block.code.strip() for block in parsed.blocks)
    assert isinstance(answer_in(text), str)


@given(st.lists(st.text("abc =()#\n", min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_plain_code_between_fences_comes_back_unchanged(blocks: list[str]) -> None:
    text = "\n".join(f"```repl\nif 1:\n  pass\n{code}\n```" for code in blocks)
    assert codes(text) == [f"if 1:\n  pass\n{code}" for code in blocks]


_BALANCED = st.recursive(
    st.text("abc .\n", max_size=5),
    lambda inner: st.builds("({})".format, inner) | st.tuples(inner, inner).map("".join),
)


@given(_BALANCED)
def test_balanced_text_is_a_final_as_it_stands(text: str) -> None:
    assert parse_reply(f"FINAL({text})").textual_final == FinalText(text.strip())
