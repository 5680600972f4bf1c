"""What the documents say of the code is what the code says."""

from __future__ import annotations

import re
import tomllib
from enum import StrEnum
from pathlib import Path

import pytest

from docs import generate
from orchestrator import errors
from orchestrator.cli.exit_codes import ExitCode, exit_code_of
from orchestrator.config import describe
from orchestrator.values import CellStatus, DeathCause, FailureReason

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("[!.]*/README.md")])

# Variables that are no settings: the make targets', the agent's, and the command's own.
OTHER_VARIABLES = {"RLM_TRACEBACK", "RLM_SERVER", "RLM_TOKEN", "RLM_SERVER_CA", "RLM_DEBIAN_MIRROR", "RLM_DEMO_MODEL"}

ERRORS = (DOCS / "errors.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text()
    assert generate.regenerated(text) == text, "run: .venv/bin/python docs/generate.py"


def test_every_generated_part_is_in_a_document() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert not [name for name in generate.PARTS if f"<!-- generated: {name} -->" not in text]


def test_every_setting_is_in_the_table_of_settings() -> None:
    text = (DOCS / "configuration.md").read_text()
    assert not [each.name for each in describe() if f"| `{each.name}` | `{each.variable}` |" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_that_documents_name_are_settings(page: Path) -> None:
    known = {each.variable for each in describe()} | OTHER_VARIABLES
    named = set(re.findall(r"\bRLM_[A-Z][A-Z_]+[A-Z]\b", page.read_text())) - {"RLM_REPL"}
    assert not named - known


def _raised() -> list[type[errors.RLMError]]:
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.RLMError)]
    return [each for each in found if each is not errors.RLMError]


def test_every_exception_has_its_row_and_its_exit_code() -> None:
    for error in _raised():
        assert f"\n| `{error.__name__}` |" in ERRORS


@pytest.mark.parametrize(
    ("words", "heading"),
    [
        (errors.ModelFailure, "`ModelFailed.kind`"),
        (errors.LossCause, "`SandboxLost.cause`"),
        (FailureReason, "A slot without an answer"),
        (CellStatus, "A cell's status"),
    ],
)
def test_the_words_for_a_failure_are_the_rows_of_their_table(words: type[StrEnum], heading: str) -> None:
    section = ERRORS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert re.findall(r"\n\| `(\w+)` \|", section) == [word.value for word in words]


def test_every_cause_of_death_is_named() -> None:
    assert not [cause.value for cause in DeathCause if f"`{cause.value}`" not in ERRORS]


def test_every_exit_code_is_listed_with_its_name() -> None:
    missing = [code.name for code in ExitCode if f"`{code.name}`" not in ERRORS]
    assert not missing
    numbers = {code.value for code in ExitCode} - set(range(3, 9))
    assert not [number for number in numbers if f"\n| {number} |" not in ERRORS]


def test_exit_codes_of_exceptions_are_the_code_s() -> None:
    told = {name: int(code) for name, code in re.findall(r"\n\| `(\w+)` \| (\d+) \|", ERRORS)}
    # Which code it is depends on the class alone.
    codes = {error.__name__: exit_code_of(error.__new__(error)) for error in _raised()}
    assert told == {name: code.value for name, code in codes.items() if code is not ExitCode.INTERNAL}


@pytest.mark.parametrize("kinds", [errors.FileFailure, errors.StoreFailure])
def test_every_kind_of_a_service_s_failure_is_named(kinds: type[StrEnum]) -> None:
    section = ERRORS.partition("\n## Errors of a service\n")[2].partition("\n## ")[0]
    assert not [kind.value for kind in kinds if f"`{kind.value}`" not in section]


def test_retried_kinds_are_told_as_the_code_has_them() -> None:
    from orchestrator.llm.retries import RETRYABLE

    told = dict(re.findall(r"\n\| `(\w+)` \| (yes|no) \|", ERRORS))
    assert told == {kind.value: "yes" if retried else "no" for kind, retried in RETRYABLE.items()}


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    reasons = (DOCS / "decisions" / "0002-dependencies.md").read_text()
    names = [re.split(r"[<>=~!\[ ]", each)[0] for each in project["dependencies"]]
    assert not [name for name in names if f"`{name}`" not in reasons]


def test_iterations_by_depth_are_told_as_the_code_has_them() -> None:
    from orchestrator.rlm.iterations import iterations_at

    rows = re.findall(
        r"\n\| (\d+)(?: \(default\))? \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", (DOCS / "depth.md").read_text()
    )
    assert rows
    for most, *told in rows:
        assert [int(number) for number in told] == [iterations_at(depth, int(most)) for depth in range(4)]


def test_the_version_has_its_entry_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
