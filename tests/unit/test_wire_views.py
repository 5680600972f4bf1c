"""Settings and views survive the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import RunSettings
from orchestrator.errors import InvalidInput
from orchestrator.protocol.rlm.v1 import run_pb2
from orchestrator.values import Ending, Spent, Usage
from orchestrator.views import ContextView, RunProblem, RunState, RunView, SandboxView, SessionView
from orchestrator.wire.settings import NAMES, chosen, settings_message
from orchestrator.wire.structs import UnknownWord
from orchestrator.wire.times import write_duration
from orchestrator.wire.views import (
    context_message,
    context_value,
    run_message,
    run_value,
    sandbox_message,
    sandbox_value,
    session_message,
    session_value,
)
from tests.unit.sample_runs import INFO

SPENT = Spent(3, 1, 1, Usage(100, 20, 50), 0.25, 1, 2, 1)
VIEW = RunView(
    run_id="run_1",
    principal="alice",
    request_id="r-1",
    state=RunState.SUCCEEDED,
    query="Who?",
    context=INFO,
    settings=RunSettings(
        model="big", models=("a", "b"), model_options={"seed": 1}, cell_timeout_s=0.25, max_sandboxes=None, max_calls=7
    ),
    session_id=None,
    labels={"team": "x"},
    started_at=1_700_000_000.25,
    ended_at=1_700_000_001.5,
    answer="",
    ending=Ending.BEST_EFFORT,
    problem=None,
    spent=SPENT,
    spent_by_model={"big": SPENT},
    spent_by_depth={0: SPENT, 1: Spent()},
    last_seq=12,
)


def test_a_run_comes_back() -> None:
    assert run_value(run_pb2.Run.FromString(run_message(VIEW).SerializeToString())) == VIEW


def test_a_run_without_an_answer_comes_back_with_its_problem() -> None:
    problem = RunProblem("BUDGET_EXCEEDED", "too much", {"limit": "max_calls"})
    view = replace(
        VIEW,
        state=RunState.FAILED,
        answer=None,
        ending=None,
        problem=problem,
        context=None,
        ended_at=None,
        session_id="s",
    )
    assert run_value(run_message(view)) == view


def test_a_state_of_tomorrow_is_not_mistaken_for_another() -> None:
    with pytest.raises(UnknownWord):
        run_value(run_pb2.Run(state=99))  # type: ignore[arg-type]


def test_contexts_sessions_and_sandboxes_come_back() -> None:
    context = ContextView(context_id="ctx_1", info=INFO, uploaded_at=5.5)
    assert context_value(context_message(context)) == context
    for expires_at in (None, 7.25):
        session = SessionView(session_id="s", run_id="run_1", busy=True, expires_at=expires_at, turns=2)
        assert session_value(session_message(session)) == session
        sandbox = SandboxView(
            sandbox_id="b", busy=False, created_at=1.5, expires_at=expires_at, cells=3, spent=SPENT, labels={"a": "b"}
        )
        assert sandbox_value(sandbox_message(sandbox)) == sandbox


def test_every_setting_of_a_run_can_be_said() -> None:
    assert set(RunSettings.__struct_fields__) == NAMES


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.text(st.characters(codec="utf-8")),
            "models": st.lists(st.just("m"), min_size=1).map(tuple),
            "max_depth": st.integers(0, 2**32 - 1),
            "max_calls": st.integers(0, 2**63),
            "max_cost_usd": st.floats(0, 1e9),
            "cell_timeout_s": st.integers(1, 10**6).map(lambda eighths: eighths / 8),
            "model_options": st.dictionaries(st.text("ab"), st.integers() | st.none(), min_size=1),
        },
    )
)
def test_what_is_chosen_is_what_was_said_and_no_more(given_: dict[str, object]) -> None:
    assert chosen(settings_message(given_)) == given_


@pytest.mark.parametrize("text", ["", "[]", "{", "1", "[" * 100_000])
def test_options_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="model_options_json"):
        chosen(run_pb2.RunSettings(model_options_json=text))


@pytest.mark.parametrize("number", [2**70, -5])
@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e300, -1e300])
def test_a_run_that_no_message_can_hold_is_told_as_the_nearest_that_one_can(number: int, seconds: float) -> None:
    spent = Spent(number, usage=Usage(number, number))
    settings = RunSettings(cell_timeout_s=seconds, max_calls=number, max_depth=number, max_output_tokens=number)
    view = replace(
        VIEW, settings=settings, spent=spent, spent_by_depth={number: spent}, started_at=seconds, last_seq=number
    )
    message = run_pb2.Run.FromString(run_message(view).SerializeToString())
    assert message.spent.calls == (2**64 - 1 if number > 0 else 0)
    assert message.settings.max_depth == (2**32 - 1 if number > 0 else 0)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e30])
def test_a_time_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="seconds"):
        write_duration(run_pb2.StartRunRequest().keep_session, seconds)
