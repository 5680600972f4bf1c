from __future__ import annotations

import logging

import pytest

from orchestrator import events as ev
from orchestrator.folds.log_lines import LogSink, Topic, log_lines
from tests.unit.sample_runs import Script, records_of, whole_run


def test_every_line_begins_with_its_depth() -> None:
    lines = [line for record in records_of(whole_run) for line in log_lines(record)]
    assert all(str(line).startswith(f"[Depth {line.depth}] ") for line in lines)
    assert {line.depth for line in lines} == {0, 1}


def test_the_loop_and_the_repl_are_told_apart() -> None:
    texts: dict[Topic, list[str]] = {Topic.LOOP: [], Topic.REPL: []}
    for record in records_of(whole_run):
        for line in log_lines(record):
            if line.level >= logging.INFO:
                texts[line.topic].append(str(line))
    assert "[Depth 0] iteration 1/20" in texts[Topic.LOOP]
    assert "[Depth 0] llm_batch of 3, at most 10 at once" in texts[Topic.REPL]
    assert "[Depth 0] cell error in 0.00 s, 5 bytes printed: IndexError: no more" in texts[Topic.REPL]
    assert any("RLM answered (final): The gardener." in text for text in texts[Topic.LOOP])


def test_untrusted_text_cannot_forge_a_line() -> None:
    records: list[ev.Record] = []
    script = Script((records.append,))
    script.start("x\n[Depth 0] run ok \x1b[2J")
    script.rlm(script.run, query="x\n[Depth 9] forged \x1b[2J")
    for record in records:
        for line in log_lines(record):
            assert "\n" not in str(line)
            assert "\x1b" not in str(line)


def test_the_sink_writes_to_standard_loggers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "orchestrator"):
        whole_run(LogSink())
    assert {record.name for record in caplog.records} == {"orchestrator.loop", "orchestrator.repl"}
    assert any(record.levelno == logging.WARNING for record in caplog.records)
