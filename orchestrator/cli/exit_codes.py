"""What the command's exit status says; `docs/cli.md` is the user's copy of this table."""

from __future__ import annotations

from enum import IntEnum

from orchestrator import errors


class ExitCode(IntEnum):
    OK = 0  # an answer was given, a best-effort one too
    FAILED = 1  # exec: the code raised; doctor: a check failed; image build: it did
    USAGE = 2  # a wrong option, argument or setting
    MODEL_FAILED = 3
    SANDBOX_UNAVAILABLE = 4
    SANDBOX_LOST = 5
    BUDGET_EXCEEDED = 6
    DEADLINE_EXCEEDED = 7
    NOT_REPLAYABLE = 8  # show: the recording cannot be read; with --verify also: it decides otherwise now
    WORKER_DIED = 9  # exec: the process that ran the code died: out of memory, crashed, exited
    NOT_FOUND = 10  # no such run, context, session or sandbox on the server
    REQUEST_CONFLICT = 11
    BUSY = 12
    QUOTA_EXCEEDED = 13
    TOO_LARGE = 14
    FILE_FAILED = 15
    SHUTTING_DOWN = 16
    STORE_FAILED = 17
    SERVICE_FAILED = 18  # the server cannot be reached, or refused for another reason
    INTERNAL = 70  # a bug of ours; sysexits.h calls it EX_SOFTWARE
    CODE_TIMED_OUT = 124  # exec: as timeout(1) has it
    INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT
    TERMINATED = 143  # 128 + SIGTERM


def exit_code_of(error: errors.RLMError) -> ExitCode:
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), ExitCode.INTERNAL)


_CODES: dict[type, ExitCode] = {
    errors.InvalidInput: ExitCode.USAGE,
    errors.ModelFailed: ExitCode.MODEL_FAILED,
    errors.SandboxUnavailable: ExitCode.SANDBOX_UNAVAILABLE,
    errors.SandboxLost: ExitCode.SANDBOX_LOST,
    errors.BudgetExceeded: ExitCode.BUDGET_EXCEEDED,
    errors.DeadlineExceeded: ExitCode.DEADLINE_EXCEEDED,
    errors.RunNotReplayable: ExitCode.NOT_REPLAYABLE,
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.RequestConflict: ExitCode.REQUEST_CONFLICT,
    errors.Busy: ExitCode.BUSY,
    errors.QuotaExceeded: ExitCode.QUOTA_EXCEEDED,
    errors.TooLarge: ExitCode.TOO_LARGE,
    errors.FileFailed: ExitCode.FILE_FAILED,
    errors.ShuttingDown: ExitCode.SHUTTING_DOWN,
    errors.StoreFailed: ExitCode.STORE_FAILED,
    errors.ServiceFailed: ExitCode.SERVICE_FAILED,
}
