"""A run's row as what callers see, and how a run's end becomes its row."""

from __future__ import annotations

import msgspec

from orchestrator.config import RunSettings
from orchestrator.errors import RLMError
from orchestrator.hosting.recording import Recording
from orchestrator.store.rows import StoredContext, StoredRun
from orchestrator.values import RunResult
from orchestrator.views import ContextView, RunProblem, RunState, RunView
from orchestrator.wire.statuses import metadata_of, reason_of


def view_of(run: StoredRun) -> RunView:
    return RunView(
        run_id=run.run_id,
        principal=run.principal,
        request_id=run.request_id,
        state=run.state,
        query=run.query,
        context=run.context,
        settings=settings_of(run),
        session_id=run.session_id,
        labels=run.labels,
        started_at=run.started_at,
        ended_at=run.ended_at,
        answer=run.answer,
        ending=run.ending,
        problem=run.problem,
        spent=run.spent,
        spent_by_model=run.spent_by_model,
        spent_by_depth=run.spent_by_depth,
        last_seq=run.last_seq,
    )


def settings_of(run: StoredRun) -> RunSettings:
    """As they were; a setting that an earlier or later release knew and this one does not is left out."""
    try:
        return msgspec.convert(run.settings, RunSettings)
    except msgspec.ValidationError:
        return RunSettings()  # its rules have changed since; the run itself is told by its events


def context_view(stored: StoredContext) -> ContextView:
    return ContextView(context_id=stored.context_id, info=stored.info, uploaded_at=stored.uploaded_at)


def so_far(run: StoredRun, recording: Recording) -> StoredRun:
    totals = recording.totals
    return msgspec.structs.replace(
        run,
        spent=totals.tree,
        spent_by_model=dict(totals.by_model),
        spent_by_depth=dict(totals.by_depth),
        last_seq=recording.last_seq,
    )


def succeeded(run: StoredRun, result: RunResult, at: float) -> StoredRun:
    return msgspec.structs.replace(
        run,
        state=RunState.SUCCEEDED,
        ended_at=at,
        answer=result.answer,
        ending=result.ending,
        spent=result.spent,
        spent_by_model=dict(result.by_model),
        spent_by_depth=dict(result.by_depth),
    )


def failed(run: StoredRun, error: RLMError, at: float) -> StoredRun:
    problem = RunProblem(reason_of(error), str(error), metadata_of(error))
    return msgspec.structs.replace(run, state=RunState.FAILED, ended_at=at, problem=problem)


def broken(run: StoredRun, at: float) -> StoredRun:
    problem = RunProblem("INTERNAL", "the service failed in an unforeseen way; its log says how")
    return msgspec.structs.replace(run, state=RunState.FAILED, ended_at=at, problem=problem)


def cancelled(run: StoredRun, reason: str, at: float) -> StoredRun:
    return msgspec.structs.replace(run, state=RunState.CANCELLED, ended_at=at, problem=RunProblem("CANCELLED", reason))
