"""All parsing of what a guest sends; what it is sent is built in `wire_out`.

Every byte of a request is an attacker's. What comes out of here has known types, known sizes and known enum values; a
guest that keeps its own caps never meets the ones here, which are larger, so going over one is a violation that ends
the sandbox. Nothing is unpickled, imported or looked up by a name from the wire.
"""

from __future__ import annotations

import math

import msgspec
from google.protobuf.message import DecodeError

from orchestrator.errors import FileFailure
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import wire_shape
from orchestrator.seams import MAX_FILE_BYTES
from orchestrator.values import (
    Attachment,
    Batch,
    Captured,
    CellResult,
    CellStatus,
    CodeError,
    ContextKind,
    DeathCause,
    FinalAnswer,
    OutputStream,
    Question,
    Variable,
    WorkerDeath,
)

PROTOCOL_VERSION = 4
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_QUESTIONS = 10_000
MAX_VARIABLES = 200
_MAX_NAME = 4_096  # characters: class names, variable names, sizes
_MAX_ERROR_TEXT = 1_048_576
_MAX_CONCURRENT = 10_000
MAX_FINAL_BYTES = 8 * 1024 * 1024  # of UTF-8; the guest cuts it to this as well
# What a guest counts may be no larger: sums of it stay within what JSON, SQLite and our own messages can hold.
_MAX_COUNT = 1 << 53
_MAX_MESSAGE_FIELDS = 16  # of a message itself, repeated ones apart
_MAX_PART_FIELDS = MAX_VARIABLES + 32  # of the one message in it
_SMALL = 4_096  # bytes: too few to hold enough parts to matter, and most messages are so small


class ProtocolViolation(Exception):
    """A message that a guest that keeps the protocol cannot send. The text holds nothing that the guest chose."""


class BadQuestion(Exception):
    """An Ask that is refused, without an end to the sandbox: model-written code may have caused it."""


class TooManyQuestions(BadQuestion):
    """An Ask over the cap on questions."""


class Hello(msgspec.Struct, frozen=True):
    protocol_version: int
    python_version: str


class Heartbeat(msgspec.Struct, frozen=True):
    pass


class Opened(msgspec.Struct, frozen=True):
    pass


class Output(msgspec.Struct, frozen=True):
    cell: int
    stream: OutputStream
    offset: int
    data: bytes


class CellEnded(msgspec.Struct, frozen=True):
    """A cell's result without its output, which came in pieces before, the last of them in `outputs`."""

    cell: int
    status: CellStatus
    error: CodeError | None
    death: WorkerDeath | None
    final: FinalAnswer | None
    variables: tuple[Variable, ...]
    seconds: float
    stdout_bytes: int
    stderr_bytes: int
    outputs: tuple[Output, ...]

    def result(self, stdout: Captured, stderr: Captured, seconds: float) -> CellResult:
        """The whole of it; `seconds` as far as they are believed."""
        return CellResult(
            status=self.status,
            stdout=stdout,
            stderr=stderr,
            error=self.error,
            death=self.death,
            final=self.final,
            variables=self.variables,
            seconds=seconds,
        )


class FileEnded(msgspec.Struct, frozen=True):
    """`failure` None: it went well."""

    number: int
    failure: FileFailure | None
    data: bytes


class Stopping(msgspec.Struct, frozen=True):
    cell: int


class TimeCheck(msgspec.Struct, frozen=True):
    cell: int


GuestMessage = Hello | Heartbeat | Opened | Output | CellEnded | FileEnded | Stopping | TimeCheck

_STREAMS = {pb.OUTPUT_STREAM_STDOUT: OutputStream.STDOUT, pb.OUTPUT_STREAM_STDERR: OutputStream.STDERR}
_STATUSES = {
    pb.CELL_STATUS_OK: CellStatus.OK,
    pb.CELL_STATUS_ERROR: CellStatus.ERROR,
    pb.CELL_STATUS_TIMED_OUT: CellStatus.TIMED_OUT,
    pb.CELL_STATUS_INTERRUPTED: CellStatus.INTERRUPTED,
    pb.CELL_STATUS_WORKER_DIED: CellStatus.WORKER_DIED,
}
_DEATHS = {
    pb.DEATH_CAUSE_EXITED: DeathCause.EXITED,
    pb.DEATH_CAUSE_CRASHED: DeathCause.CRASHED,
    pb.DEATH_CAUSE_OUT_OF_MEMORY: DeathCause.OUT_OF_MEMORY,
    pb.DEATH_CAUSE_TIMED_OUT: DeathCause.TIMED_OUT,
    pb.DEATH_CAUSE_INTERRUPTED: DeathCause.INTERRUPTED,
    pb.DEATH_CAUSE_PROTOCOL: DeathCause.PROTOCOL,
}
_FILE_FAILURES = {
    pb.FILE_STATUS_INVALID_PATH: FileFailure.INVALID_PATH,
    pb.FILE_STATUS_NOT_FOUND: FileFailure.NOT_FOUND,
    pb.FILE_STATUS_NOT_REGULAR: FileFailure.NOT_REGULAR,
    pb.FILE_STATUS_TOO_LARGE: FileFailure.TOO_LARGE,
    pb.FILE_STATUS_DISK_FULL: FileFailure.DISK_FULL,
    pb.FILE_STATUS_NOT_PERMITTED: FileFailure.NOT_PERMITTED,
}
_KINDS = {
    pb.CONTEXT_KIND_TEXT: ContextKind.TEXT,
    pb.CONTEXT_KIND_JSON: ContextKind.JSON,
    pb.CONTEXT_KIND_BYTES: ContextKind.BYTES,
}


def read_message(data: bytes) -> GuestMessage:
    """A message of the stream from its bytes. Raises `ProtocolViolation`."""
    try:
        if len(data) > _SMALL:
            for _, payload in wire_shape.fields(data, _MAX_MESSAGE_FIELDS):
                for _ in wire_shape.fields(payload, _MAX_PART_FIELDS):
                    pass
        return parse_message(pb.AttachRequest.FromString(data))
    except wire_shape.TooManyFields:
        raise ProtocolViolation("a message of more parts than there are") from None
    except (wire_shape.Malformed, DecodeError):
        raise ProtocolViolation("bytes that are no message") from None


def read_questions(data: bytes) -> Batch:
    """The questions of an Ask from its bytes. Raises `BadQuestion`, `TooManyQuestions`."""
    try:
        if len(data) > _SMALL:
            for _ in wire_shape.fields(data, MAX_QUESTIONS + _MAX_MESSAGE_FIELDS):
                pass
        return parse_questions(pb.AskRequest.FromString(data))
    except wire_shape.TooManyFields:
        raise TooManyQuestions(f"at most {MAX_QUESTIONS:,} questions may be asked at once") from None
    except (wire_shape.Malformed, DecodeError):
        raise BadQuestion("there is no question") from None


def parse_message(request: pb.AttachRequest) -> GuestMessage:
    """Raises `ProtocolViolation`."""
    match request.WhichOneof("message"):
        case "hello":
            return Hello(request.hello.protocol_version, _name(request.hello.python_version, "python_version"))
        case "heartbeat":
            return Heartbeat()
        case "opened":
            return Opened()
        case "output":
            return _output(request.output)
        case "cell_ended":
            return _cell_ended(request.cell_ended)
        case "file_ended":
            return _file_ended(request.file_ended)
        case "stopping":
            return Stopping(request.stopping.cell)
        case "time_check":
            return TimeCheck(request.time_check.cell)
        case _:
            raise ProtocolViolation("a message of no known kind")


def parse_questions(request: pb.AskRequest) -> Batch:
    """Raises `BadQuestion`, `TooManyQuestions`."""
    if not request.questions:
        raise BadQuestion("there is no question")
    if len(request.questions) > MAX_QUESTIONS:
        raise TooManyQuestions(f"at most {MAX_QUESTIONS:,} questions may be asked at once")
    if request.max_concurrent < 1:
        raise BadQuestion("max_concurrent must be at least 1")
    questions = tuple(Question(question.prompt, _attachment(question)) for question in request.questions)
    recursive = request.recursive if request.HasField("recursive") else None
    return Batch(questions, min(request.max_concurrent, _MAX_CONCURRENT), request.stop_at_failure, recursive)


def _output(output: pb.Output) -> Output:
    stream = _STREAMS.get(output.stream)
    if stream is None:
        raise ProtocolViolation("output of no known stream")
    if not output.data:
        # Without a rule against these, a guest could keep us busy with messages that no cap counts.
        raise ProtocolViolation("an empty piece of output")
    _count(output.offset + len(output.data), "offset")
    return Output(output.cell, stream, output.offset, output.data)


def _cell_ended(ended: pb.CellEnded) -> CellEnded:
    status = _STATUSES.get(ended.status)
    if status is None:
        raise ProtocolViolation("a cell ended with no known status")
    seconds = ended.seconds
    if not 0 <= seconds < math.inf:
        raise ProtocolViolation("a cell took no possible time")
    variables = ended.variables
    if len(variables) > MAX_VARIABLES:
        raise ProtocolViolation(f"more than {MAX_VARIABLES} variables")
    error = _code_error(ended.error) if ended.HasField("error") else None
    death = _death(ended.worker_death) if ended.HasField("worker_death") else None
    if (status is CellStatus.ERROR) and error is None:
        raise ProtocolViolation("a cell failed without an error")
    if (status is CellStatus.WORKER_DIED) != (death is not None):
        raise ProtocolViolation("the worker's death and the cell's status do not agree")
    return CellEnded(
        cell=ended.cell,
        status=status,
        error=error,
        death=death,
        final=_final(ended.final_answer) if ended.HasField("final_answer") else None,
        variables=tuple(map(_variable, variables)),
        seconds=seconds,
        stdout_bytes=_count(ended.stdout_bytes, "stdout_bytes"),
        stderr_bytes=_count(ended.stderr_bytes, "stderr_bytes"),
        outputs=tuple(map(_output, ended.outputs)),
    )


def _variable(variable: pb.Variable) -> Variable:
    return Variable(_name(variable.name, "name"), _name(variable.type_name, "type_name"), _name(variable.size, "size"))


def _file_ended(ended: pb.FileEnded) -> FileEnded:
    failure = _FILE_FAILURES.get(ended.status)
    if failure is None and ended.status != pb.FILE_STATUS_OK:
        raise ProtocolViolation("a file with no known status")
    if len(ended.data) > MAX_FILE_BYTES or (failure is not None and ended.data):
        raise ProtocolViolation("a file that is too large, or that failed and has content")
    return FileEnded(ended.number, failure, ended.data)


def _code_error(error: pb.CodeError) -> CodeError:
    return CodeError(
        _name(error.type_name, "type_name"),
        _text(error.message, _MAX_ERROR_TEXT, "message"),
        _text(error.traceback, _MAX_ERROR_TEXT, "traceback"),
    )


def _death(death: pb.WorkerDeath) -> WorkerDeath:
    cause = _DEATHS.get(death.cause)
    if cause is None:
        raise ProtocolViolation("the worker died of no known cause")
    return WorkerDeath(cause, death.code)


def _final(final: pb.FinalAnswer) -> FinalAnswer:
    length = max(_count(final.length, "length"), len(final.text))
    return FinalAnswer(_cut(final.text, MAX_FINAL_BYTES), _name(final.type_name, "type_name"), length)


def _attachment(question: pb.Question) -> Attachment | None:
    if not question.HasField("context"):
        return None
    kind = _KINDS.get(question.context.kind)
    if kind is None:
        raise BadQuestion("a context of no known kind")
    return Attachment(kind, question.context.data)


def _name(text: str, field: str) -> str:
    return _text(text, _MAX_NAME, field)


def _count(number: int, field: str) -> int:
    if number > _MAX_COUNT:
        raise ProtocolViolation(f"{field} is larger than anything that can be counted")
    return number


def _cut(text: str, most_bytes: int) -> str:
    if len(text) * 4 <= most_bytes or len(data := text.encode("utf-8")) <= most_bytes:
        return text
    return data[:most_bytes].decode("utf-8", "ignore")


def _text(text: str, limit: int, field: str) -> str:
    if len(text) > limit:
        raise ProtocolViolation(f"{field} is longer than {limit:,} characters")
    return text
