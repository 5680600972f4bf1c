"""An error crosses the wire and is raised on the other side as what it was."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from orchestrator import errors as er
from orchestrator.wire.statuses import CODES, error_from, error_of, metadata_of, reason_of, status_of

ALL: list[er.RLMError] = [
    er.InvalidInput("max_depth", "must be at least 1; it is 0.", "Give 1 or more."),
    er.ModelFailed(er.ModelFailure.RATE_LIMITED, "gpt-5", "slow down", status=429, attempts=6, retry_after_s=2.5),
    er.ModelFailed(er.ModelFailure.CONNECTION, "gpt-5", "no route"),
    er.SandboxUnavailable("no engine answers.", "Start it."),
    er.SandboxLost("rlm-a-1", er.LossCause.OUT_OF_MEMORY, "at 2 GiB"),
    er.BudgetExceeded("max_cost_usd", 0.5, 0.49, 0.02),
    er.DeadlineExceeded("max_seconds", 12.5),
    er.RunNotReplayable("line 3: not a record."),
    er.NotFound("run", "run_x", "deleted."),
    er.RequestConflict("abc"),
    er.Busy("the session is busy.", "Wait for its run."),
    er.QuotaExceeded("max_runs", 4, 4, "Wait for one to end."),
    er.TooLarge("max_upload_bytes", 10, 11),
    er.FileFailed(er.FileFailure.DISK_FULL, "data.csv", "no space left"),
    er.ShuttingDown(),
    er.StoreFailed(er.StoreFailure.LOCKED, "another server has it.", "Stop that one."),
    er.ServiceFailed(er.ServiceFailure.UNAUTHENTICATED, "no token.", "Give one."),
]


def _attributes(error: er.RLMError) -> dict[str, Any]:
    return {name: value for name, value in vars(error).items() if not name.startswith("__")}


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_as_what_it_was(error: er.RLMError) -> None:
    status = status_of(error)
    found = error_of(status.code, status.message, status.SerializeToString())
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert _attributes(found) == _attributes(error)
    again = error_from(reason_of(error), str(error), metadata_of(error))
    assert (type(again), str(again), _attributes(again)) == (type(error), str(error), _attributes(error))


def test_every_error_has_its_row() -> None:
    classes = {each for each in vars(er).values() if isinstance(each, type) and issubclass(each, er.RLMError)}
    assert set(CODES) == classes - {er.RLMError} == {type(error) for error in ALL}


def _detail(error: er.RLMError, kind: type[Message]) -> Any:
    for detail in status_of(error).details:
        found = kind()
        if detail.Unpack(found):
            return found
    return None


def test_details_are_there_where_a_program_looks_for_them() -> None:
    (violation,) = _detail(ALL[0], error_details_pb2.BadRequest).field_violations
    assert violation.field == "max_depth"
    assert _detail(ALL[1], error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 2500
    assert _detail(er.ShuttingDown(), error_details_pb2.RetryInfo) is not None
    assert _detail(er.NotFound("run", "x"), error_details_pb2.RetryInfo) is None
    (over,) = _detail(er.QuotaExceeded("max_runs", 4, 4), error_details_pb2.QuotaFailure).violations
    assert over.subject == "max_runs"
    info = _detail(er.BudgetExceeded("max_calls", 3, 3, 1), error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason, info.metadata["limit"]) == ("rlm-orchestrator", "BUDGET_EXCEEDED", "max_calls")


@pytest.mark.parametrize("letter", ["x", "漢", "\ud800"])
def test_a_long_text_still_fits_into_headers(letter: str) -> None:
    long = letter * 100_000
    for error in (er.ModelFailed(er.ModelFailure.SERVER, "m", long), er.InvalidInput(long, long, long)):
        status = status_of(error)
        assert len(status.SerializeToString()) < 8_000
        assert len(status.message.encode()) <= 1024
        assert type(error_of(status.code, status.message, status.SerializeToString())) is type(error)


def test_statuses_that_are_not_ours_are_told_by_their_code() -> None:
    found = error_of(code_pb2.UNAVAILABLE, "connection refused")
    assert isinstance(found, er.ServiceFailed)
    assert found.kind is er.ServiceFailure.UNREACHABLE
    found = error_of(code_pb2.DATA_LOSS, "", b"\xff\xff garbage")
    assert isinstance(found, er.ServiceFailed)
    assert (found.kind, str(found)) == (er.ServiceFailure.INTERNAL, "data loss")
    foreign = status_pb2.Status(code=5, message="no")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(domain="elsewhere", reason="NOT_FOUND"))
    assert isinstance(error_of(5, "no", foreign.SerializeToString()), er.ServiceFailed)


@pytest.mark.parametrize(("reason", "metadata"), [("OF_TOMORROW", {}), ("SANDBOX_LOST", {"cause": "of tomorrow"})])
def test_a_newer_server_s_error_still_says_what_happened(reason: str, metadata: dict[str, str]) -> None:
    found = error_from(reason, "what happened", metadata)
    assert isinstance(found, er.ServiceFailed)
    assert str(found) == "what happened"


@pytest.mark.parametrize("reason", ["CANCELLED", "INTERRUPTED"])
def test_a_run_that_was_stopped_is_no_failure_of_the_caller_s(reason: str) -> None:
    found = error_from(reason, "", {})
    assert isinstance(found, er.ServiceFailed)
    assert found.kind is er.ServiceFailure.RUN_STOPPED
