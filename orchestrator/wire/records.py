"""Records of events to their messages and back."""

from __future__ import annotations

from typing import Any, get_args

from orchestrator.events import Event, Record, SpanKind
from orchestrator.protocol.rlm.v1 import events_pb2
from orchestrator.values import CellResult, OutputChunk, OutputStream
from orchestrator.wire.structs import UnknownWord, clean, enum_tables, fill, parse, write_whole


def _field_name(kind: type[Any]) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__).lstrip("_")


_FIELDS: dict[type[Any], str] = {kind: _field_name(kind) for kind in get_args(Event)}
_KINDS = {name: kind for kind, name in _FIELDS.items()}
_SPAN_NUMBERS, _SPAN_KINDS = enum_tables(SpanKind, events_pb2.SpanKind.DESCRIPTOR)
_STREAM_NUMBERS, _STREAMS = enum_tables(OutputStream, events_pb2.OutputStream.DESCRIPTOR)


def record_message(record: Record) -> events_pb2.Record:
    message = events_pb2.Record(
        at=record.at,
        kind=_SPAN_NUMBERS[record.kind],
    )
    for name, number in (("seq", record.seq), ("span_id", record.span_id), ("depth", record.depth)):
        write_whole(message, name, number)
    write_whole(message, "parent_id", record.parent_id or 0)
    event = getattr(message.event, _FIELDS[type(record.event)])
    event.SetInParent()
    fill(event, record.event)
    return message


def record_value(message: events_pb2.Record) -> Record | None:
    """None for an event, or a word in one, that is newer than this release: to be passed over."""
    name = message.event.WhichOneof("event")
    if name is None or message.kind not in _SPAN_KINDS:
        return None
    try:
        event = parse(_KINDS[name], getattr(message.event, name))
    except UnknownWord:
        return None
    return Record(
        message.seq,
        message.at,
        message.span_id,
        message.parent_id or None,
        _SPAN_KINDS[message.kind],
        message.depth,
        event,
    )


def chunk_message(chunk: OutputChunk) -> events_pb2.CellPrinted:
    return events_pb2.CellPrinted(stream=_STREAM_NUMBERS[chunk.stream], offset=chunk.offset, text=clean(chunk.text))


def chunk_value(message: events_pb2.CellPrinted) -> OutputChunk | None:
    """None for a stream that is newer than this release."""
    stream = _STREAMS.get(message.stream)
    return None if stream is None else OutputChunk(stream, message.offset, message.text)


def result_message(result: CellResult) -> events_pb2.CellResult:
    message = events_pb2.CellResult()
    fill(message, result)
    return message


def result_value(message: events_pb2.CellResult) -> CellResult:
    """Raises `UnknownWord`."""
    return parse(CellResult, message)
