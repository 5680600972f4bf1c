"""The leaf model that reads: its answers are computed from the text."""

import pytest

from orchestrator.testing.scripted import NOT_FOUND, parse_request, read_text
from orchestrator.testing.scripted.arithmetic import evaluate
from orchestrator.testing.scripted.reading import answer_from, split_question

LOG = """\
2026-01-05 INFO service started
2026-01-05 ERROR disk full on node-3
2026-01-06 INFO disk cleaned, contact ops@example.com
2026-01-07 ERROR disk full on node-9
"""
PROSE = "The red house stands on a hill. Its owner is Ms. Vole. The blue house belongs to Mr. Marten."


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ('How many lines contain "ERROR"?', LOG, "2"),
        ("How many lines mention 'disk'?", LOG, "3"),
        ('Count the lines that contain "nothing".', LOG, "0"),
        ("How many lines are there?", LOG, "4"),
        ("How many words are there?", "one two  three\nfour", "4"),
        ('How many times does "disk" occur?', LOG, "3"),
        ('How often does the word "is" appear?', "This is it: is this?", "2"),
        ('List the lines that contain "node-9".', LOG, "2026-01-07 ERROR disk full on node-9"),
        ('Find all sentences mentioning "blue".', PROSE, "The blue house belongs to Mr."),
        ("List all dates in the text.", LOG, "2026-01-05\n2026-01-06\n2026-01-07"),
        ("Extract the emails.", LOG, "ops@example.com"),
        ("What is the total of all the numbers?", "3 apples, 4.5 pears, -2 plums, version v7", "5.5"),
        ("What is the largest value?", "3, 14, 9", "14"),
        ("What is the average of the numbers?", "1 2 3 4", "2.5"),
        ("What is the smallest number?", "none here", NOT_FOUND),
        ("What is the access code of the vault?", "Name: Ann\nVault access code: 7193\nFloor: 2", "7193"),
        ("Where does the red house stand?", PROSE, "The red house stands on a hill."),
        ("Who won the chess tournament?", PROSE, NOT_FOUND),
        ("What is 17 * 23?", "", "391"),
        ("What is (2+2) / 8?", "", "0.5"),
    ],
)
def test_answers_are_true_of_the_text(question: str, text: str, answer: str) -> None:
    assert answer_from(question, text) == answer


def test_a_summary_keeps_the_order_of_the_text_and_the_number_asked_for() -> None:
    text = "It rained. Cats sleep. Dogs bark. Cats and dogs sleep."

    assert answer_from("Summarize this in 2 sentences.", text) == "Cats sleep. Cats and dogs sleep."
    assert answer_from("Summarize the text.", "") == NOT_FOUND


@pytest.mark.parametrize(
    "message",
    [
        "How many lines are there?\n\nalpha\nbeta",
        "alpha\nbeta\n\nHow many lines are there?",
        "How many lines are there?\nContext: alpha\nbeta",
        "Context:\nalpha\nbeta\nQuestion: How many lines are there?",
        "Question: How many lines are there?\n\nText: alpha\nbeta",
        "How many lines are there?\nalpha\nbeta",
    ],
)
def test_the_question_is_found_on_either_side_of_the_text(message: str) -> None:
    assert split_question(message) == ("How many lines are there?", "alpha\nbeta")


def test_the_policy_answers_the_last_user_message() -> None:
    request = parse_request(
        {"model": "read", "messages": [{"role": "user", "content": 'How many times does "a" occur?\n\na b a'}]}
    )

    assert read_text(request).text == "2"


@pytest.mark.parametrize(
    "question", ["What is 1/0?", "What is 2 +?", "Room 17", "From 1-2 to 3-4", "What is 9**9**9?", "1+" * 200 + "1"]
)
def test_what_is_not_one_small_expression_is_not_computed(question: str) -> None:
    assert evaluate(question) is None
