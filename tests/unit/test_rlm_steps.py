"""What an RLM decides, from its history alone."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.errors import ModelFailure
from orchestrator.events import (
    CellEnded,
    CellStarted,
    IterationEnded,
    IterationStarted,
    ModelCallEnded,
    NoticeGiven,
    Outcome,
    RlmStarted,
    TimeRanShort,
)
from orchestrator.rlm.iterations import iterations_at
from orchestrator.rlm.steps import Ask, Finish, GiveUp, RunCell, next_step
from orchestrator.rlm.transcript import Transcript, fold
from orchestrator.values import (
    Captured,
    CellResult,
    CellStatus,
    CodeError,
    DeathCause,
    Ending,
    FinalAnswer,
    FinishReason,
    Role,
    Variable,
    WorkerDeath,
)

START = RlmStarted("How many?", None, depth=0, max_depth=1, max_iterations=3, model="m")
OK = CellResult(CellStatus.OK, stdout=Captured("7\n", "", 2))
TWO_BLOCKS = "```repl\na = 1\n```\n```repl\nb = 2\n```"


def final(text: str) -> CellResult:
    return CellResult(CellStatus.OK, final=FinalAnswer(text, "str", len(text)))


def replied(
    text: str | None, finish: FinishReason = FinishReason.STOP, outcome: Outcome = Outcome.OK
) -> ModelCallEnded:
    return ModelCallEnded(outcome, text, finish, None, None, False, "m", 0.1)


class History:
    """A transcript that is built event by event, as a driver does it."""

    def __init__(self, start: RlmStarted = START) -> None:
        self.transcript: Transcript = fold(None, start)

    def reply(
        self, text: str | None, finish: FinishReason = FinishReason.STOP, *, last_resort: bool = False
    ) -> History:
        number = len(self.transcript.turns) + 1
        self.transcript = fold(self.transcript, IterationStarted(number, START.max_iterations, last_resort))
        self.transcript = fold(self.transcript, replied(text, finish))
        return self

    def cell(self, result: CellResult) -> History:
        step = next_step(self.transcript)
        assert isinstance(step, RunCell)
        self.transcript = fold(self.transcript, CellStarted(step.code))
        self.transcript = fold(self.transcript, CellEnded(Outcome.OK, result))
        return self

    def step(self) -> Ask | RunCell | Finish | GiveUp:
        return next_step(self.transcript)

    def ask(self) -> Ask:
        step = self.step()
        assert isinstance(step, Ask)
        return step

    def told(self) -> str:
        return self.ask().messages[-1].content


def test_the_first_step_asks_with_the_query() -> None:
    messages = History().ask().messages
    assert [message.role for message in messages] == [Role.SYSTEM, Role.USER]
    assert "How many?" in messages[1].content
    assert "Iteration 1 of 3" in messages[1].content


def test_all_blocks_of_a_reply_run_in_order() -> None:
    history = History().reply(TWO_BLOCKS)
    assert history.step() == RunCell("a = 1")
    assert history.cell(OK).step() == RunCell("b = 2")
    assert isinstance(history.cell(OK).step(), Ask)


def test_a_block_after_the_final_answer_does_not_run() -> None:
    assert History().reply(TWO_BLOCKS).cell(final("42")).step() == Finish("42", Ending.FINAL)


def test_a_block_after_a_failed_one_still_runs() -> None:
    failed = CellResult(CellStatus.ERROR, error=CodeError("KeyError", "'x'", "Traceback: KeyError: 'x'"))
    assert History().reply(TWO_BLOCKS).cell(failed).step() == RunCell("b = 2")


@pytest.mark.parametrize("text", ["", "0", "None", "[]"])
def test_an_answer_is_a_flag_and_not_truthiness(text: str) -> None:
    assert History().reply("```repl\nFINAL(x)\n```").cell(final(text)).step() == Finish(text, Ending.FINAL)


def test_an_answer_given_before_the_cell_failed_counts() -> None:
    result = msgspec.structs.replace(
        final("42"), status=CellStatus.ERROR, error=CodeError("ValueError", "late", "Traceback")
    )
    assert History().reply("```repl\nx\n```").cell(result).step() == Finish("42", Ending.FINAL)


def test_a_textual_final_finishes_with_its_text() -> None:
    assert History().reply("Done.\nFINAL(forty\ntwo)").step() == Finish("forty\ntwo", Ending.FINAL)
    assert History().reply('FINAL("")').step() == Finish("", Ending.FINAL)


def test_a_guessed_final_beside_code_does_not_finish() -> None:
    history = History().reply("```repl\nx = 1\n```\nFINAL(guess)")
    assert history.step() == RunCell("x = 1")
    assert isinstance(history.cell(OK).step(), Ask)


def test_a_textual_final_var_runs_a_cell() -> None:
    history = History().reply("FINAL_VAR(total)")
    assert history.step() == RunCell("FINAL_VAR('total')")
    assert history.cell(final("42")).step() == Finish("42", Ending.FINAL)


def test_a_final_var_of_a_missing_name_goes_on_and_tells_what_exists() -> None:
    missing = CellResult(
        CellStatus.ERROR,
        error=CodeError("NameError", "no variable 'totl'", "NameError: no variable 'totl'"),
        variables=(Variable("total", "int", ""), Variable("rows", "list", "3 items")),
    )
    told = History().reply("FINAL_VAR(totl)").cell(missing).told()
    assert "no variable 'totl'" in told
    assert "total (int), rows (list, 3 items)" in told


def test_the_assistants_own_reply_is_in_the_history_with_and_without_code() -> None:
    history = History().reply("Let me think about it.").reply("```repl\nx\n```").cell(OK)
    messages = history.ask().messages
    assert [message.content for message in messages if message.role is Role.ASSISTANT] == [
        "Let me think about it.",
        "```repl\nx\n```",
    ]
    assert [message.role for message in messages[1:]] == [Role.USER, Role.ASSISTANT] * 2 + [Role.USER]


def test_a_reply_without_code_is_told_and_uses_an_iteration() -> None:
    told = History().reply("Hm.").told()
    assert "no code and no final answer" in told
    assert "Iteration 2 of 3" in told


@pytest.mark.parametrize("text", ["", None, "  \n"])
def test_an_empty_or_null_reply_is_told_and_uses_an_iteration(text: str | None) -> None:
    history = History().reply(text)
    assert "Your reply was empty" in history.told()
    assert history.ask().messages[2].content == "(an empty reply)"  # some APIs turn down an empty message
    assert "Iteration 2 of 3" in history.told()


def test_a_refused_reply_is_told_and_nothing_in_it_counts() -> None:
    told = History().reply("FINAL(I cannot help with that)", FinishReason.REFUSAL).told()
    assert "You declined" in told


def test_a_reply_cut_before_it_said_anything_is_told_so() -> None:
    assert "before it said anything" in History().reply("", FinishReason.LENGTH).told()
    assert "content filter" in History().reply(None, FinishReason.CONTENT_FILTER).told()


def test_half_a_block_of_a_reply_cut_by_length_does_not_run() -> None:
    history = History().reply("```repl\na = 1\n```\n```repl\ndelete(", FinishReason.LENGTH)
    assert history.step() == RunCell("a = 1")
    told = history.cell(OK).told()
    assert "reached the output limit" in told
    assert "did not run" in told


def test_a_whole_block_without_its_fence_runs_when_the_reply_was_not_cut() -> None:
    assert History().reply("```repl\nx = 1").step() == RunCell("x = 1")


def test_ignored_blocks_are_told() -> None:
    told = History().reply("```python\nx\n```\n```repl\ny\n```").cell(OK).told()
    assert "Not run: the code blocks at line 1 (tagged 'python')" in told


def test_an_empty_block_is_told() -> None:
    assert "line 1 (empty)" in History().reply("```repl\n```").told()


def test_the_loss_of_all_variables_is_told_and_stops_the_reply() -> None:
    died = CellResult(CellStatus.WORKER_DIED, death=WorkerDeath(DeathCause.OUT_OF_MEMORY))
    told = History().reply(TWO_BLOCKS).cell(died).told()
    assert "ran out of memory" in told
    assert "VARIABLES, FUNCTIONS AND IMPORTS ARE GONE" in told
    assert "The blocks after it did not run" in told


@pytest.mark.parametrize(
    ("status", "words"),
    [(CellStatus.TIMED_OUT, "time limit of a block. Its variables are kept"), (CellStatus.INTERRUPTED, "from outside")],
)
def test_an_interrupted_cell_is_told(status: CellStatus, words: str) -> None:
    assert words in History().reply("```repl\nx\n```").cell(CellResult(status)).told()


def test_when_time_runs_short_there_is_one_last_plain_question_and_no_more_code() -> None:
    history = History().reply(TWO_BLOCKS).cell(OK)
    history.transcript = fold(history.transcript, TimeRanShort(3.0))
    ask = history.ask()
    assert ask.last_resort
    assert "The time for this task is over" in ask.messages[-1].content
    assert "<stdout>\n7" in ask.messages[-1].content
    step = next_step(history.reply("Seven.", last_resort=True).transcript)
    assert step == Finish("Seven.", Ending.BEST_EFFORT)


def test_a_reply_that_came_to_nothing_in_time_is_not_told() -> None:
    history = History().reply("Hm.")
    history.transcript = fold(fold(history.transcript, IterationStarted(2, 3)), TimeRanShort(3.0))
    assert len(history.transcript.turns) == 1
    assert history.ask().last_resort


def test_an_answer_that_is_given_counts_also_when_time_runs_short() -> None:
    history = History().reply(TWO_BLOCKS).cell(final("7"))
    history.transcript = fold(history.transcript, TimeRanShort(3.0))
    assert next_step(history.transcript) == Finish("7", Ending.FINAL)


def test_out_of_iterations_there_is_one_last_plain_question() -> None:
    history = History()
    for _ in range(3):
        history.reply("Hm.")
    ask = history.ask()
    assert ask.last_resort
    assert "out of iterations" in ask.messages[-1].content
    assert "How many?" in ask.messages[-1].content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("About 42.", "About 42."),
        ("FINAL(42)", "42"),
        ("```repl\nmore()\n```\nFINAL(42)", "42"),
    ],
)
def test_last_words_are_a_best_effort_and_run_no_code(text: str, answer: str) -> None:
    history = History().reply("1").reply("2").reply("3").reply(text, last_resort=True)
    assert history.step() == Finish(answer, Ending.BEST_EFFORT)


def test_a_variable_in_the_last_words_is_looked_up() -> None:
    history = History().reply("1").reply("2").reply("3").reply("FINAL_VAR(total)", last_resort=True)
    assert history.step() == RunCell("FINAL_VAR('total')")
    assert history.cell(final("42")).step() == Finish("42", Ending.BEST_EFFORT)


def test_a_missing_variable_in_the_last_words_does_not_ask_again() -> None:
    history = History().reply("1").reply("2").reply("3").reply("FINAL_VAR(totl)", last_resort=True)
    missing = CellResult(CellStatus.ERROR, error=CodeError("NameError", "totl", "NameError"))
    assert history.cell(missing).step() == Finish("FINAL_VAR(totl)", Ending.BEST_EFFORT)


def test_empty_or_refused_last_words_give_up() -> None:
    def after(text: str, finish: FinishReason) -> object:
        return History().reply("1").reply("2").reply("3").reply(text, finish, last_resort=True).step()

    empty, refused = after("", FinishReason.STOP), after("No.", FinishReason.REFUSAL)
    assert isinstance(empty, GiveUp)
    assert empty.kind is ModelFailure.MALFORMED
    assert isinstance(refused, GiveUp)
    assert refused.kind is ModelFailure.REFUSED


def test_the_last_iterations_are_announced() -> None:
    history = History().reply("1")
    assert "One more comes after this" in history.told()
    assert "This is the last one" in history.reply("2").told()


def test_iterations_shrink_with_depth_and_do_not_compound() -> None:
    assert [iterations_at(depth, 20) for depth in range(5)] == [20, 10, 6, 5, 4]
    assert [iterations_at(depth, 4) for depth in range(3)] == [4, 3, 3]
    assert iterations_at(0, 1) == 1


# --- folding --------------------------------------------------------------------------------------------------


def test_a_step_that_is_under_way_is_decided_again_alike() -> None:
    asked = fold(fold(None, START), IterationStarted(1, 3))
    assert isinstance(next_step(asked), Ask)
    assert next_step(asked) == next_step(fold(None, START))
    running = fold(History().reply(TWO_BLOCKS).transcript, CellStarted("a = 1"))
    assert next_step(running) == RunCell("a = 1")


def test_events_that_nothing_depends_on_change_nothing() -> None:
    transcript = History().reply(TWO_BLOCKS).transcript
    lost = CellEnded(Outcome.FAILED, None, "the sandbox was lost")
    for event in (IterationEnded(Outcome.OK), NoticeGiven("x"), replied(None, outcome=Outcome.FAILED), lost):
        assert fold(transcript, event) is transcript


def test_events_that_cannot_follow_are_refused() -> None:
    started = fold(None, START)
    replies = fold(fold(started, IterationStarted(1, 3)), replied("x"))
    for transcript, event in (
        (None, IterationStarted(1, 3)),
        (started, replied("x")),
        (replies, replied("y")),
        (started, CellStarted("x")),
        (replies, CellEnded(Outcome.OK, OK)),
    ):
        with pytest.raises(ValueError, match=r"before|outside|started"):
            fold(transcript, event)


def test_a_second_query_goes_on_with_the_first_ones_history() -> None:
    history = History().reply("```repl\nFINAL(x)\n```").cell(final("42"))
    history.transcript = fold(history.transcript, RlmStarted("And now?", None, 0, 1, 3, "m"))
    messages = history.ask().messages
    assert [message.role for message in messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]
    assert "How many?" in messages[1].content
    assert "Next query: And now?" in messages[3].content
    assert "Iteration 1 of 3" in messages[3].content
