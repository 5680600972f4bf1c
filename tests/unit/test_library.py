"""The library's edges that need no container: its log lines, and what becomes of a start that fails."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from orchestrator import client, library
from orchestrator.config import Config
from orchestrator.folds.log_lines import LogSink
from tests.unit.sample_runs import whole_run

Make = Callable[[], object]
libraries = pytest.mark.parametrize(
    "make",
    [
        lambda: library.RLM(model="m", base_url="http://127.0.0.1:1/v1", enable_logging=True),
        lambda: client.RLM(server="unix:/nowhere/socket", enable_logging=True),
    ],
    ids=["library", "client"],
)


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[logging.Logger, logging.Logger]]:
    """The root's and ours, as in a program that has done nothing yet; both as before after the test."""
    root, ours = logging.getLogger(), logging.getLogger("orchestrator")
    kept = [(each, each.level, each.handlers[:], each.propagate) for each in (root, ours)]
    root.handlers, root.level = [], logging.WARNING
    ours.handlers, ours.propagate = [], True
    ours.setLevel(logging.NOTSET)
    yield root, ours
    for each, level, handlers, propagate in kept:
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


@libraries
def test_log_lines_reach_the_handlers_of_a_program_that_has_set_logging_up(
    make: Make, loggers: tuple[logging.Logger, logging.Logger]
) -> None:
    root, ours = loggers
    heard = Heard()
    root.addHandler(heard)  # as logging.basicConfig() does, which leaves the level at WARNING
    make()
    whole_run(LogSink())
    assert "[Depth 0] iteration 1/20" in heard.lines
    assert ours.handlers == []


@libraries
def test_log_lines_reach_stderr_where_nothing_is_set_up(
    make: Make, loggers: tuple[logging.Logger, logging.Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    loggers[1].propagate = False  # pytest has handlers of its own at the root
    make()
    make()  # a second one does not say everything twice
    whole_run(LogSink())
    assert capsys.readouterr().err.splitlines().count("[Depth 0] iteration 1/20") == 1


@libraries
def test_a_level_that_was_set_stays(make: Make, loggers: tuple[logging.Logger, logging.Logger]) -> None:
    _, ours = loggers
    ours.setLevel(logging.ERROR)
    make()
    assert ours.level == logging.ERROR


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), RuntimeError("odd"), asyncio.CancelledError()])
def test_a_start_that_failed_is_tried_again_and_closing_works(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    @asynccontextmanager
    async def failing(host: Config) -> AsyncIterator[object]:
        nonlocal attempts
        attempts += 1
        raise failure
        yield

    monkeypatch.setattr(library, "open_orchestrator", failing)
    rlm = library.RLM(model="m", base_url="http://127.0.0.1:1/v1")
    for _ in range(3):
        with pytest.raises(
            (OSError, RuntimeError, concurrent.futures.CancelledError, asyncio.CancelledError)
        ) as caught:
            rlm.completion(query="x")
        assert str(failure) in str(caught.value)
    assert attempts == 3
    library.close()
