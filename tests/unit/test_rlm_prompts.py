"""What a model is told: before it starts, of its context, of its cells, and how much of a long history."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from orchestrator.events import RlmStarted
from orchestrator.rlm.conversation import conversation
from orchestrator.rlm.fences import split_fences
from orchestrator.rlm.prompts import PromptStyle, system_prompt
from orchestrator.rlm.transcript import Cell, Said, Transcript, Turn
from orchestrator.values import (
    Captured,
    CellResult,
    CellStatus,
    CodeError,
    ContextInfo,
    ContextKind,
    FinishReason,
    Message,
    Role,
    Variable,
)
from tests.unit.guest_modules import worker_queries

BOOK = ContextInfo(ContextKind.TEXT, "str", 1_200_000, 1_000_000, "characters", "Chapter I", "The End")


def started(depth: int = 0, max_depth: int = 1, iterations: int = 20, context: ContextInfo | None = BOOK) -> RlmStarted:
    return RlmStarted("Who did it?", context, depth, max_depth, iterations, "m")


def prompt(depth: int = 0, max_depth: int = 1, style: PromptStyle | None = None) -> str:
    return system_prompt(started(depth, max_depth), style or PromptStyle())


def asked(transcript: Transcript, style: PromptStyle | None = None) -> tuple[Message, ...]:
    return conversation(transcript.with_turn(), style or PromptStyle())


def turn(result: CellResult, text: str = "```repl\nx\n```") -> Turn:
    return Turn(said=Said(text, FinishReason.STOP), cells=(Cell("x", result),))


def told(result: CellResult, style: PromptStyle | None = None) -> str:
    return asked(Transcript(started(), (turn(result),)), style)[-1].content


def printed(size: int, stderr: str = "") -> CellResult:
    text = "a" * (size - 1) + "z"
    return CellResult(CellStatus.OK, stdout=Captured(text, "", size), stderr=Captured(stderr, "", len(stderr)))


@pytest.mark.parametrize(
    "taught",
    [
        "`context`",
        "llm_query(prompt)",
        "llm_batch(prompts, max_concurrent=10)",
        "context=obj",
        "allm_query",
        "allm_batch",
        "FINAL(value)",
        'FINAL_VAR("name")',
        "SHOW_VARS()",
        "load_context()",
        '{"content": value, "ready": True}',
        '"failed", False',
        "```repl",
        "ceil(n / max_concurrent) * t",
        "You have 20 iterations",
    ],
)
def test_the_system_prompt_teaches(taught: str) -> None:
    assert taught in prompt()


def test_the_examples_of_the_system_prompt_are_python_that_would_run() -> None:
    blocks = split_fences(prompt()).blocks
    assert [block.tag for block in blocks] == ["repl"] * 3
    for block in blocks:
        ast.parse(block.code)


def test_sub_calls_are_plain_at_the_last_depth_and_recursive_above() -> None:
    assert "has no REPL" in prompt(0, 1)
    assert "has no REPL" in prompt(2, 3)
    for depth, max_depth in ((0, 2), (0, 3), (1, 3)):
        assert "an agent like you with a REPL of its own" in prompt(depth, max_depth)
    assert "agents too, 1 more level down" in prompt(0, 3)
    assert "plain models, without a REPL" in prompt(1, 3)


def test_a_sub_call_is_told_that_it_is_one() -> None:
    assert "sub-call at depth 1" in prompt(1, 2)
    assert "sub-call at depth" not in prompt(0, 2)


def test_the_users_own_instructions_stand_last() -> None:
    assert prompt(style=PromptStyle(instructions="Answer in French.")).endswith("Answer in French.")
    assert "Further instructions" not in prompt(style=PromptStyle(instructions="  "))


def test_the_context_is_described_and_not_sent() -> None:
    (_, first) = asked(Transcript(started()))
    assert "`context` is a str of 1,000,000 characters, 1,200,000 bytes." in first.content
    assert "<head>\nChapter I\n</head>" in first.content
    assert "<tail>\nThe End\n</tail>" in first.content


def test_a_context_of_bytes_and_no_context_are_described() -> None:
    data = ContextInfo(ContextKind.BYTES, "bytes", 3, 3, "bytes", "b'abc'", "")
    assert "a bytes of 3 bytes.\nAll of it:" in asked(Transcript(started(context=data)))[1].content
    assert "There is no `context`" in asked(Transcript(started(context=None)))[1].content


def test_output_is_cut_head_and_tail_with_its_true_length() -> None:
    text = told(printed(50_000))
    assert "50,000 bytes were printed in all" in text
    assert "z\n</stdout>" in text
    assert text.count("a") < 10_100


def test_output_that_the_guest_cut_keeps_its_true_length() -> None:
    result = CellResult(CellStatus.OK, stdout=Captured("HEAD", "TAIL", 9_999_999, 9_999_991))
    assert "HEAD\n[... cut here: 9,999,999 bytes were printed in all ...]\nTAIL" in told(result)


def test_stderr_survives_when_stdout_is_cut() -> None:
    assert "<stderr>\nwatch out\n</stderr>" in told(printed(1_000_000, "watch out"))


def test_a_traceback_is_kept_at_both_ends() -> None:
    error = CodeError("KeyError", "'x'", "Traceback\n" + "frame\n" * 5_000 + "KeyError: 'x'")
    text = told(CellResult(CellStatus.ERROR, error=error))
    assert "failed with KeyError; what ran before the error is kept" in text
    assert "<traceback>\nTraceback" in text
    assert "KeyError: 'x'\n</traceback>" in text
    assert len(text) < 5_000


def test_a_cell_that_printed_nothing_is_told() -> None:
    assert "It printed nothing" in told(CellResult(CellStatus.OK))


def test_variables_are_told_by_name_type_and_size_within_bounds() -> None:
    many = tuple(Variable(f"v{number}" + "x" * 500, "list", "3 items") for number in range(1_000))
    text = told(CellResult(CellStatus.OK, variables=(Variable("rows", "list", "3 items"), *many)))
    assert "rows (list, 3 items)" in text
    assert "more" in text
    assert len(text) < 3_000


# --- long histories ---------------------------------------------------------------------------------------------

STYLE = PromptStyle(history_chars=60_000)


def long_history(turns: int) -> Transcript:
    return Transcript(
        started(iterations=100), tuple(turn(printed(9_000), f"step {n}\n```repl\nx\n```") for n in range(turns))
    )


def size(messages: tuple[Message, ...]) -> int:
    return sum(len(message.content) for message in messages[1:])


def test_a_history_within_its_budget_is_told_in_full() -> None:
    messages = asked(long_history(5), STYLE)
    assert all("a" * 8_000 in message.content for message in messages if "<stdout>" in message.content)


def test_older_outputs_are_shortened_first_and_the_latest_is_whole() -> None:
    messages = asked(long_history(30), STYLE)
    assert size(messages) < 70_000
    assert "a" * 8_000 in messages[-1].content
    assert "a" * 8_000 not in messages[3].content
    assert "printed" in messages[3].content


def test_every_reply_is_still_there_in_a_shortened_history() -> None:
    replies = [message.content for message in asked(long_history(30), STYLE) if message.role is Role.ASSISTANT]
    assert [reply.split("\n")[0] for reply in replies] == [f"step {n}" for n in range(30)]


def test_a_shortened_history_keeps_its_beginning_for_several_turns() -> None:
    # A prompt cache needs an unchanged beginning: shortening a little at each turn would defeat it.
    conversations = [asked(long_history(turns), STYLE) for turns in range(1, 31)]
    extended = [after[: len(before)] == before for before, after in pairwise(conversations)]
    assert extended.count(False) <= 6


def test_long_replies_are_cut_when_outputs_are_not_enough() -> None:
    wordy = tuple(turn(CellResult(CellStatus.OK), "w" * 20_000 + "\n```repl\nx\n```") for _ in range(10))
    assert size(asked(Transcript(started(iterations=100), wordy), STYLE)) < 60_000


def test_a_conversation_depends_on_nothing_but_the_transcript() -> None:
    assert asked(long_history(30), STYLE) == asked(long_history(30), replace(STYLE))


def test_a_style_gets_tighter_to_an_end() -> None:
    style: PromptStyle | None = PromptStyle()
    sizes = []
    while style is not None:
        sizes.append(size(asked(long_history(30), style)))
        style = style.tightened()
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 4


def test_where_sub_calls_are_agents_the_choice_of_a_plain_one_is_taught() -> None:
    style = PromptStyle(plain_calls=True)
    assert "With `recursive=False`" in prompt(0, 2, style)
    assert "goes to a plain model by itself" not in prompt(0, 2, style)
    assert "recursive=False" not in prompt(0, 1, style)
    adaptive = prompt(0, 2, replace(style, plain_chars=20_000))
    assert "at most 20,000 characters, its data included, goes to a plain model by itself" in adaptive
    assert "`rlm_query(prompt)`" in adaptive


def test_the_names_that_a_cell_cannot_lose_are_those_that_are_taught() -> None:
    names = worker_queries.query_functions(None)  # type: ignore[arg-type]
    everything = prompt(0, 2, PromptStyle(plain_calls=True, plain_chars=20_000))
    assert [name for name in names.taught if name not in everything] == []
    assert [name for name in names.offered if re.search(rf"(?<![.\w]){name}[(`]", everything)] == []
