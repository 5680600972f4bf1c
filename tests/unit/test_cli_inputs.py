from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.cli.inputs import ContextFormat, Selection, gather, has_unread_input
from orchestrator.errors import InvalidInput

AUTO = ContextFormat.AUTO


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "src" / ".git").mkdir(parents=True)
    (tmp_path / "src" / ".git" / "config").write_text("secret")
    (tmp_path / "src" / "b.py").write_text("b = 2\n")
    (tmp_path / "src" / "a.py").write_text("a = 1\n")
    (tmp_path / "src" / "logo.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "src" / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "outside.txt").write_text("outside")
    (tmp_path / "src" / "link.txt").symlink_to(tmp_path / "outside.txt")
    os.mkfifo(tmp_path / "src" / "pipe")
    return tmp_path


def test_a_folder_is_a_dict_of_its_text_files(folder: Path) -> None:
    src = folder / "src"
    gathered = gather([str(src)], AUTO)
    assert gathered.context == {str(src / "a.py"): "a = 1\n", str(src / "b.py"): "b = 2\n"}
    assert gathered.files == 2
    said = "\n".join(gathered.skipped)
    for name in (".git/", "logo.png (not text)", "latin.txt (not text)", "link.txt (not a reg", "pipe (not a reg"):
        assert name in said


def test_a_folder_of_one_file_is_a_dict_still(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert gather([str(tmp_path)], AUTO).context == {str(tmp_path / "a"): "x"}


def test_a_pattern_is_expanded_here_when_the_shell_did_not(folder: Path) -> None:
    context = gather([f"{folder}/**/*.py"], AUTO).context
    assert isinstance(context, dict)
    assert [Path(name).name for name in context] == ["a.py", "b.py"]


def test_a_pattern_brings_what_is_in_the_folders_that_it_matches(folder: Path) -> None:
    (folder / "src" / "sub").mkdir()
    (folder / "src" / "sub" / "c.py").write_text("c = 3\n")
    by_shell = gather([str(path) for path in sorted((folder / "src").glob("[abs]*"))], AUTO)
    assert gather([f"{folder}/src/[abs]*"], AUTO).context == by_shell.context
    assert isinstance(by_shell.context, dict)
    assert [Path(name).name for name in by_shell.context] == ["a.py", "b.py", "c.py"]
    only = gather([f"{folder}/s*"], AUTO, Selection(include=("c.py",))).context
    assert only == {str(folder / "src" / "sub" / "c.py"): "c = 3\n"}


def test_a_recording_may_not_overwrite_what_it_is_of(folder: Path) -> None:
    gathered = gather([str(folder / "src")], AUTO)
    (folder / "again").hardlink_to(folder / "src" / "a.py")
    for own in ("src/a.py", "src/../src/b.py", "again", "src/logo.png"):
        with pytest.raises(InvalidInput, match="is one of the inputs, and would be overwritten"):
            gathered.refuse_to_overwrite(folder / own)
    for other in ("outside.txt", "new.jsonl", "no/such/folder.jsonl"):
        gathered.refuse_to_overwrite(folder / other)


@pytest.mark.parametrize(("content", "waits"), [(b"text\n", True), (b"", False)])
def test_what_waits_on_standard_input_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, waits: bool
) -> None:
    (tmp_path / "in").write_bytes(content)
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert has_unread_input() is waits
    reading, writing = os.pipe()
    os.write(writing, content)
    with os.fdopen(reading) as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        assert has_unread_input() is waits
    os.close(writing)
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert not has_unread_input()


def test_one_file_is_handed_on_unread(folder: Path) -> None:
    path = folder / "outside.txt"
    assert gather([str(path)], AUTO).context == path


def test_a_file_given_twice_counts_once(folder: Path) -> None:
    path = str(folder / "outside.txt")
    assert gather([path, path], ContextFormat.TEXT).context == {path: "outside"}


@pytest.mark.parametrize(
    ("form", "content", "expected"),
    [
        (ContextFormat.TEXT, b"[1]", "[1]"),
        (ContextFormat.JSON, b"[1]", [1]),
        (ContextFormat.LINES, b"a\nb\n", ["a", "b"]),
        (ContextFormat.BYTES, b"\0\xff", b"\0\xff"),
    ],
)
def test_formats(tmp_path: Path, form: ContextFormat, content: bytes, expected: object) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert gather([str(path)], form).context == expected


@pytest.mark.parametrize(
    ("arguments", "form", "message"),
    [
        (["-", "-"], AUTO, "read once"),
        (["none.txt"], AUTO, "no such file"),
        (["none*.txt"], AUTO, "matches no file"),
        (["binary"], AUTO, "is not UTF-8 text. Use --context-format bytes"),
        (["text", "binary"], AUTO, "is not UTF-8 text"),
        (["text", "binary"], ContextFormat.BYTES, "bytes takes one file"),
        (["text"], ContextFormat.JSON, "is not JSON"),
        (["empty"], AUTO, "there is no text file in"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    form: ContextFormat,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("hello")
    Path("binary").write_bytes(b"\0\1")
    Path("empty").mkdir()
    with pytest.raises(InvalidInput, match=message):
        gather(arguments, form)


def test_include_and_exclude_choose_among_the_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.py", "a.txt", "deep/b.py", "deep/vendored/c.py", "tests/d.py", "tests/keep/e.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = gather([str(tmp_path)], ContextFormat.AUTO, Selection(("*.py",), ("vendored", "tests/keep")))
    assert isinstance(found.context, dict)
    assert sorted(found.context.values()) == ["a.py", "deep/b.py", "tests/d.py"]
    assert found.skipped == ()
