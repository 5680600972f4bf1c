from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from orchestrator.cli import screen
from orchestrator.cli.live_tree import live_tree
from orchestrator.folds.tree import CallTree
from tests.unit.sample_runs import Script


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def _terminals(monkeypatch: pytest.MonkeyPatch) -> tuple[_Terminal, _Terminal]:
    # No fixture: pytest sets its own streams anew between a fixture and its test.
    out, err = _Terminal(), _Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return out, err


def test_an_answer_is_cleaned_for_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = _terminals(monkeypatch)
    screen.give("a\x1b[2Jb")
    assert terminals[0].getvalue() == "ab\n"
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    screen.give("a\x1b[2Jb \ud800")
    assert file.getvalue() == "a\x1b[2Jb ?\n"


def test_labels_have_color_on_a_terminal_unless_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = _terminals(monkeypatch)
    screen.warn("x\x1b[2J", label="Error")
    monkeypatch.setenv("NO_COLOR", "1")
    screen.warn("y")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    screen.warn("z")
    assert terminals[1].getvalue() == "\x1b[31m\x1b[1mError:\x1b[0m x\nNote: y\nNote: z\n"


def test_json_on_a_terminal_holds_no_control(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = _terminals(monkeypatch)
    screen.give_json({"answer": "\x1b\x9b\u202e"})
    assert terminals[0].getvalue() == '{"answer": "\\u001b\\u009b\\u202e"}\n'


async def test_a_line_said_while_the_tree_is_live_stays_and_the_tree_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminals(monkeypatch)[1]
    tree = CallTree()
    script = Script((tree,))
    script.start()
    async with live_tree(tree, Console(stderr=True, force_terminal=True, width=80, height=20), clock=script.clock):
        screen.say("Stopping.")
    shown = _replayed(terminal.getvalue())
    assert [line for line in shown if line.strip()] == ["Stopping."]


def _replayed(stream: str) -> list[str]:
    """What a terminal shows in the end: the few controls that the tree uses, carried out."""
    rows, row, column = [""], 0, 0
    index = 0
    while index < len(stream):
        character = stream[index]
        index += 1
        match character:
            case "\n":
                row, column = row + 1, 0
                if row == len(rows):
                    rows.append("")
            case "\r":
                column = 0
            case "\x1b":
                end = next(at for at in range(index + 1, len(stream)) if stream[at].isalpha())
                number, final = stream[index + 1 : end], stream[end]
                index = end + 1
                if final == "A":
                    row -= int(number)
                elif final == "K":
                    rows[row] = ""
            case _:
                rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
                column += 1
    return rows
