"""Imports point one way, and each foreign library has one door. Read from the syntax tree: lazy imports count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a part may import of this project. A part is a package or a module of `orchestrator`.
WORDS = {"values", "errors", "events", "seams"}
ENGINE = {"rlm", "llm", "sandbox"}
ALLOWED: dict[str, set[str]] = {
    "values": set(),
    "errors": set(),
    "events": {"values"},
    "seams": {"values", "events", "errors"},
    "config": {"values", "errors"},
    "loop_thread": set(),
    "tasks": set(),
    "held": set(),
    "text": set(),
    "json_shape": {"errors"},
    "views": {"values", "config"},
    "account": WORDS,
    "budget": WORDS | {"account"},
    "rlm": WORDS,
    "llm": WORDS | {"text", "budget", "loop_thread", "config"},  # an edge too: programs use its client by itself
    "sandbox": WORDS | {"protocol", "tasks", "json_shape"},
    "folds": WORDS | {"text"},
    "run_session": WORDS | {"held", "rlm"},
    "runtimes": WORDS | {"sandbox"},
    "build": WORDS | ENGINE | {"config", "budget", "run_session", "folds", "runtimes"},
    "library": WORDS | {"build", "config", "folds", "held", "loop_thread"},
    # The service. What both ends must know lies beneath both: `views`, and `wire` for the messages.
    "store": WORDS | {"text", "views", "folds"},
    "wire": WORDS | {"text", "views", "config", "protocol"},
    "telemetry": WORDS | {"folds"},
    "hosting": WORDS
    | {"views", "config", "tasks", "held", "json_shape", "budget", "folds"}
    | {"build", "run_session", "rlm", "store", "wire"},
    "server": WORDS | {"views", "config", "protocol", "wire", "hosting", "store", "telemetry", "build"},
    "client": WORDS | {"views", "config", "protocol", "wire", "folds", "held", "loop_thread"},
    # Edges.
    "cli": WORDS
    | {"views", "config", "folds", "wire", "rlm", "sandbox", "build", "store", "hosting", "server", "client"}
    | {"telemetry"},
    "testing": WORDS | {"sandbox", "tasks", "client"},
    "__init__": {"config", "library", "build", "llm"},
}

# The only importers of a library.
DOORS = {
    "openai": {"orchestrator/llm/openai_"},
    "aiohttp": {"orchestrator/llm/openai_"},
    "docker": {"orchestrator/sandbox/engine_docker"},
    "genai_prices": {"orchestrator/llm/prices"},
    "tenacity": {"orchestrator/llm/retries"},
    "grpc": {"orchestrator/sandbox/", "orchestrator/server/", "orchestrator/client/"},  # the guest speaks it by itself
    "grpc_health": {"orchestrator/server/"},
    "grpc_reflection": {"orchestrator/server/"},
    "google": {
        "orchestrator/sandbox/wire",
        "orchestrator/server/",
        "orchestrator/client/",
        "orchestrator/wire/",
        "sandbox_image/guest/",
    },
    "sqlite3": {"orchestrator/store/"},
    "sqlite_utils": {"orchestrator/store/migrations"},
    "prometheus_client": {"orchestrator/telemetry/"},
    "opentelemetry": {"orchestrator/telemetry/traces"},
    "click": {"orchestrator/cli/"},
    "rich": {"orchestrator/cli/"},
    "dotenv": {"orchestrator/config"},
}


def _sources(folder: str) -> Iterator[Path]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        if "protocol" not in path.parts and "generated" not in path.parts:
            yield path


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield module
                yield from (f"{module}.{name.name}" for name in names)
            case ast.ImportFrom(level=level) if level:
                yield f"<relative import in {path.name}>"
            case _:
                pass


def _part(path: Path) -> str:
    return path.relative_to(ROOT / "orchestrator").parts[0].removesuffix(".py")


SOURCES = list(_sources("orchestrator"))
GUEST = list(_sources("sandbox_image/guest"))


def test_every_part_has_its_arrows() -> None:
    assert {_part(path) for path in SOURCES} == set(ALLOWED)


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_is_beneath_it(part: str) -> None:
    for path in SOURCES:
        if _part(path) != part:
            continue
        for name in _imports(path):
            assert not name.startswith("<relative"), f"{path}: imports are absolute"
            if name.startswith("orchestrator."):
                target = name.split(".")[1]
                assert target == part or target in ALLOWED[part], f"{path.relative_to(ROOT)} imports {name}"


def test_the_arrows_have_no_circle() -> None:
    TopologicalSorter({part: beneath - {"protocol"} for part, beneath in ALLOWED.items()}).prepare()


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_library_is_imported_through_its_door_only(library: str) -> None:
    importers = [
        path.relative_to(ROOT).as_posix()
        for path in [*SOURCES, *GUEST]
        if any(name == library or name.startswith(f"{library}.") for name in _imports(path))
        and "testing" not in path.parts
    ]
    strays = [path for path in importers if not any(path.startswith(door) for door in DOORS[library])]
    assert not strays
    assert importers, f"nothing imports {library}: this door is out of date"


def test_the_guest_imports_nothing_of_the_orchestrator() -> None:
    for path in GUEST:
        assert not [name for name in _imports(path) if name.split(".")[0] == "orchestrator"], path


def test_only_the_composition_root_and_the_edges_join_the_parts() -> None:
    for path in SOURCES:
        part = _part(path)
        if part in {"build", "cli", "server", "testing"}:
            continue
        targets = {name.split(".")[1] for name in _imports(path) if name.startswith("orchestrator.")}
        assert len((targets & ENGINE) - {part}) <= (0 if part in ENGINE else 1), f"{path} joins {targets & ENGINE}"
