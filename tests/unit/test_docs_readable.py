"""Links lead somewhere, samples compile, and commands exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from orchestrator.cli.command import rlm

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[!.]*/README.md")])

_FENCE = re.compile(r"^```(?P<tag>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")

on_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _blocks(page: Path, tag: str) -> Iterator[str]:
    for block in _FENCE.finditer(page.read_text()):
        if block["tag"] == tag:
            yield block["body"]


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@on_each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.finditer(_FENCE.sub("", page.read_text())):
        target = link["target"]
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name}: {target}"


@on_each_page
def test_files_named_in_code_style_exist(page: Path) -> None:
    """Paths from the top of the tree, such as `orchestrator/build.py`."""
    named = re.findall(r"`((?:orchestrator|sandbox_image|protos|tests|examples|docs)/[\w./-]+)`", page.read_text())
    generated = ("orchestrator/protocol", "sandbox_image/generated")
    assert not [name for name in named if not name.startswith(generated) and not (ROOT / name).exists()]


@on_each_page
def test_python_samples_compile(page: Path) -> None:
    for code in _blocks(page, "python"):
        compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@on_each_page
def test_names_that_samples_import_exist(page: Path) -> None:
    for code in _blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orchestrator"):
                module = import_module(node.module or "")
                for name in node.names:
                    there = hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}") is not None
                    assert there, f"{page.name}: {node.module}.{name.name}"


def _commands(page: Path) -> Iterator[list[str]]:
    for body in _blocks(page, "console"):
        for line in body.splitlines():
            if not line.startswith("$ "):
                continue
            for part in re.split(r"\||&&", line[2:]):
                yield shlex.split(part, comments=True)


@on_each_page
def test_rlm_commands_have_the_options_that_they_are_given(page: Path) -> None:
    for words in _commands(page):
        while words and "=" in words[0]:
            words = words[1:]
        if not words or Path(words[0]).name != "rlm":
            continue
        context = click.Context(rlm)
        command: click.Command = rlm
        rest = words[1:]
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest.pop(0))
            assert found is not None, f"{page.name}: {shlex.join(words)}"
            command = found
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}
        given = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
        assert not [option for option in given if option not in known], f"{page.name}: {shlex.join(words)}"


@on_each_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in _commands(page):
        if "make" in words:
            given = [word for word in words[words.index("make") + 1 :] if "=" not in word]
            assert set(given) <= targets, f"{page.name}: {shlex.join(words)}"


def test_the_test_command_is_make_test() -> None:
    assert "\n$ make test " in (ROOT / "README.md").read_text()


def test_pictures_are_whole_and_load_nothing() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("*.svg"))
    assert pictures
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()
        assert root.tag.endswith("svg")
        text = picture.read_text()
        assert "url(http" not in text
        assert "@import" not in text
