from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.folds.printable import last_line, one_line, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;Y2xpcGJvYXJk\x1b\\after", "after"),
        ("\x1bP+q544e\x1b\\after", "after"),
        ("\x9b2Jcleared", "cleared"),
        ("\x9d0;title\x9cafter", "after"),
        ("\x1bcreset", "reset"),
        ("abc\x08\x08xy", "abcxy"),
        ("access\u202eexe.txt", "accessexe.txt"),
        ("a\u2066b\u2069c\u200f", "abc"),
        ("over\rwritten", "over\nwritten"),
        ("dos\r\nline", "dos\nline"),
        ("nul\0bell\a", "nulbell"),
        ("hidden\U000e0041tag", "hiddentag"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("tab\tand\nnewline stay", "tab\tand\nnewline stay"),
        ("naïve 東京 🙂", "naïve 東京 🙂"),
    ],
)
def test_controls_are_removed_and_text_stays(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_an_unterminated_sequence_hides_no_more_than_its_line() -> None:
    assert printable("\x1b]0;title\nnext line") == "\nnext line"


@given(st.text(alphabet=st.characters(), max_size=60))
def test_no_control_survives_and_a_second_pass_changes_nothing(text: str) -> None:
    clean = printable(text)
    assert printable(clean) == clean
    for character in clean:
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )


def test_one_line_folds_space_and_cuts_with_an_ellipsis() -> None:
    assert one_line("  a\n\n b\t c ") == "a b c"
    assert one_line("abcdefgh", 5) == "abcd…"
    assert one_line("\n" * 1_000 + "late", 5) == "…"


def test_last_line_is_the_last_that_says_something() -> None:
    assert last_line("first\nsecond\n   \n") == "second"
    assert last_line("abcdefgh", 5) == "…efgh"
    assert last_line("") == ""
