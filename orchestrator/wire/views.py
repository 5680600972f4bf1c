"""What callers see of runs, contexts, sessions and sandboxes: `views` to messages and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.config import RunSettings
from orchestrator.protocol.rlm.v1 import events_pb2, run_pb2, sandbox_pb2
from orchestrator.values import ContextInfo, Ending, Spent
from orchestrator.views import ContextView, RunProblem, RunState, RunView, SandboxView, SessionView
from orchestrator.wire.settings import chosen, told_settings
from orchestrator.wire.structs import UnknownWord, clean, enum_tables, fill, parse, write_whole
from orchestrator.wire.times import time_of, write_time

_STATE_NUMBERS, _STATES = enum_tables(RunState, run_pb2.RunState.DESCRIPTOR)
_ENDING_NUMBERS, _ENDINGS = enum_tables(Ending, events_pb2.Ending.DESCRIPTOR)


def run_message(view: RunView) -> run_pb2.Run:
    """Never raises: a run that could not be told would take a whole page of runs with it."""
    message = run_pb2.Run(
        run_id=view.run_id,
        request_id=view.request_id,
        state=_STATE_NUMBERS[view.state],
        query=clean(view.query),
        settings=told_settings(view.settings),
        session_id=view.session_id or "",
        labels=view.labels,
        answer=clean(view.answer or ""),
        ending=_ENDING_NUMBERS[view.ending] if view.ending else events_pb2.ENDING_UNSPECIFIED,
        principal=view.principal,
    )
    write_whole(message, "last_seq", view.last_seq)
    if view.context is not None:
        fill(message.context, view.context)
    write_time(message.start_time, view.started_at)
    write_time(message.end_time, view.ended_at)
    if view.problem is not None:
        message.error.reason, message.error.message = view.problem.reason, clean(view.problem.message)
        message.error.metadata.update(view.problem.metadata)
    fill(message.spent, view.spent)
    for model, spent in view.spent_by_model.items():
        fill(message.spent_by_model[model], spent)
    for depth, spent in view.spent_by_depth.items():
        fill(message.spent_by_depth[min(max(depth, 0), 2**32 - 1)], spent)
    return message


def run_value(message: run_pb2.Run) -> RunView:
    """Raises `UnknownWord` for a state that is newer than this release."""
    state = state_value(message.state)
    return RunView(
        run_id=message.run_id,
        principal=message.principal,
        request_id=message.request_id,
        state=state,
        query=message.query,
        context=parse(ContextInfo, message.context) if message.HasField("context") else None,
        settings=_settings(chosen(message.settings)),
        session_id=message.session_id or None,
        labels=dict(message.labels),
        started_at=time_of(message.start_time),
        ended_at=_time(message, "end_time"),
        answer=message.answer if state is RunState.SUCCEEDED else None,
        ending=_ENDINGS.get(message.ending),
        problem=(
            RunProblem(message.error.reason, message.error.message, dict(message.error.metadata))
            if message.HasField("error")
            else None
        ),
        spent=parse(Spent, message.spent),
        spent_by_model={name: parse(Spent, spent) for name, spent in message.spent_by_model.items()},
        spent_by_depth={depth: parse(Spent, spent) for depth, spent in message.spent_by_depth.items()},
        last_seq=message.last_seq,
    )


def state_value(number: int) -> RunState:
    """Raises `UnknownWord`."""
    try:
        return _STATES[number]
    except KeyError:
        raise UnknownWord(f"there is no run state {number}") from None


def state_numbers(states: Iterable[RunState]) -> list[int]:
    return [_STATE_NUMBERS[state] for state in states]


def context_message(view: ContextView) -> run_pb2.StoredContext:
    message = run_pb2.StoredContext(context_id=view.context_id)
    fill(message.info, view.info)
    write_time(message.upload_time, view.uploaded_at)
    return message


def context_value(message: run_pb2.StoredContext) -> ContextView:
    return ContextView(
        context_id=message.context_id, info=parse(ContextInfo, message.info), uploaded_at=time_of(message.upload_time)
    )


def session_message(view: SessionView) -> run_pb2.Session:
    message = run_pb2.Session(session_id=view.session_id, run_id=view.run_id, busy=view.busy, turns=view.turns)
    write_time(message.expire_time, view.expires_at)
    return message


def session_value(message: run_pb2.Session) -> SessionView:
    return SessionView(
        session_id=message.session_id,
        run_id=message.run_id,
        busy=message.busy,
        expires_at=_time(message, "expire_time"),
        turns=message.turns,
    )


def sandbox_message(view: SandboxView) -> sandbox_pb2.Sandbox:
    message = sandbox_pb2.Sandbox(sandbox_id=view.sandbox_id, busy=view.busy, cells=view.cells, labels=view.labels)
    write_time(message.create_time, view.created_at)
    write_time(message.expire_time, view.expires_at)
    fill(message.spent, view.spent)
    return message


def sandbox_value(message: sandbox_pb2.Sandbox) -> SandboxView:
    return SandboxView(
        sandbox_id=message.sandbox_id,
        busy=message.busy,
        created_at=time_of(message.create_time),
        expires_at=_time(message, "expire_time"),
        cells=message.cells,
        spent=parse(Spent, message.spent),
        labels=dict(message.labels),
    )


def _settings(given: Mapping[str, Any]) -> RunSettings:
    # What the server left unset has no limit there: not this release's default.
    limits = dict.fromkeys(("max_calls", "max_tokens", "max_cost_usd", "max_seconds", "max_sandboxes"))
    return RunSettings(**{**limits, **given})


def _time(message: Any, name: str) -> float | None:
    found: Timestamp = getattr(message, name)
    return time_of(found) if message.HasField(name) else None
