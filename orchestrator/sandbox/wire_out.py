"""All building of what a guest is sent. What a guest may make large is sized before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.values import Answered, ContextInfo, ContextKind, Failed, FailureReason, Slot

MAX_ANSWER_BYTES = 60 * 1024 * 1024  # of all texts of one answer: the rest of a message is for its failures

_KINDS = {
    ContextKind.TEXT: pb.CONTEXT_KIND_TEXT,
    ContextKind.JSON: pb.CONTEXT_KIND_JSON,
    ContextKind.BYTES: pb.CONTEXT_KIND_BYTES,
}
_REASONS = {
    FailureReason.MODEL: pb.FAILURE_REASON_MODEL,
    FailureReason.REFUSED: pb.FAILURE_REASON_REFUSED,
    FailureReason.TOO_LONG: pb.FAILURE_REASON_TOO_LONG,
    FailureReason.BUDGET: pb.FAILURE_REASON_BUDGET,
    FailureReason.DEADLINE: pb.FAILURE_REASON_DEADLINE,
    FailureReason.SANDBOX: pb.FAILURE_REASON_SANDBOX,
    FailureReason.INVALID: pb.FAILURE_REASON_INVALID,
    FailureReason.CANCELLED: pb.FAILURE_REASON_CANCELLED,
    FailureReason.NO_ROOM: pb.FAILURE_REASON_NO_ROOM,
}


def open_message(
    info: ContextInfo | None,
    file_name: str,
    *,
    queries_allowed: bool,
    head_bytes: int,
    tail_bytes: int,
    variable: str = "context",
) -> pb.AttachResponse:
    context = None
    if info is not None:
        context = pb.Context(kind=_KINDS[info.kind], file_name=file_name, size_bytes=info.size_bytes, variable=variable)
    return pb.AttachResponse(
        open=pb.Open(
            context=context,
            queries_allowed=queries_allowed,
            output_head_bytes=head_bytes,
            output_tail_bytes=tail_bytes,
        )
    )


def run_message(cell: int, code: str, time_limit_s: float, grace_s: float) -> pb.AttachResponse:
    return pb.AttachResponse(
        run_cell=pb.RunCell(cell=cell, code=_encodable(code), time_limit_s=time_limit_s, grace_s=grace_s)
    )


def interrupt_message(cell: int) -> pb.AttachResponse:
    return pb.AttachResponse(interrupt=pb.Interrupt(cell=cell))


def waited_message(cell: int, seconds: float, waits: bool) -> pb.AttachResponse:
    return pb.AttachResponse(waited=pb.Waited(cell=cell, seconds=seconds, waits=waits))


def write_file_message(number: int, path: str, data: bytes) -> pb.AttachResponse:
    return pb.AttachResponse(write_file=pb.WriteFile(number=number, path=path, data=data))


def read_file_message(number: int, path: str) -> pb.AttachResponse:
    return pb.AttachResponse(read_file=pb.ReadFile(number=number, path=path))


def least_size(slots: Sequence[Slot]) -> int:
    """Bytes that `answer_pieces` will give at least, without building anything."""
    return min(MAX_ANSWER_BYTES, sum(len(slot.text) for slot in slots if isinstance(slot, Answered)))


def answer_pieces(slots: Sequence[Slot]) -> list[bytes]:
    """An AskResponse in pieces, to be joined: a message's parts, encoded one by one, are the message.

    So what it takes is known before it is built, and an answer that stands in many slots is encoded once. A text that
    has no room any more fails in its own slot; the others are answered.
    """
    pieces: list[bytes] = []
    encoded: dict[int, bytes] = {}
    room = MAX_ANSWER_BYTES
    for slot in slots:
        piece = encoded.get(id(slot))
        if piece is None:
            # Longer in characters than there is room for bytes: not even encoded.
            fits = not isinstance(slot, Answered) or len(slot.text) <= room
            piece = pb.AskResponse(slots=[_slot(slot)]).SerializeToString() if fits else _NO_ROOM
            encoded[id(slot)] = piece
        if isinstance(slot, Answered) and piece is not _NO_ROOM:
            if len(piece) > room:
                piece = _NO_ROOM
            else:
                room -= len(piece)
        pieces.append(piece)
    return pieces


def _slot(slot: Slot) -> pb.Slot:
    match slot:
        case Answered(text):
            return pb.Slot(text=_encodable(text))
        case Failed(reason, message):
            return pb.Slot(failure=pb.Failure(reason=_REASONS[reason], message=_encodable(message)))
        case unreachable:
            assert_never(unreachable)


def _encodable(text: str) -> str:
    # A model's JSON may hold a lone surrogate, which no UTF-8 field can carry.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


_NO_ROOM = pb.AskResponse(
    slots=[
        _slot(
            Failed(
                FailureReason.NO_ROOM,
                "its answer was left out, since the answers to one call may have "
                f"{MAX_ANSWER_BYTES >> 20} MiB together; ask fewer questions at once",
            )
        )
    ]
).SerializeToString()
