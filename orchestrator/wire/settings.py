"""What a run chooses for itself: `RunSettings` messages to settings by their names in `Config`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.message import Message

from orchestrator.errors import InvalidInput
from orchestrator.protocol.rlm.v1 import events_pb2, run_pb2
from orchestrator.values import Limits
from orchestrator.wire.structs import clean, parse
from orchestrator.wire.times import seconds_of, write_duration

_SINGLE = ("model", "recursive_model", "max_output_tokens", "max_depth", "max_iterations", "adaptive_depth")
_LISTS = ("models", "instructions")
_LIMITS = tuple(field.name for field in msgspec.structs.fields(Limits))
NAMES = frozenset({*_SINGLE, *_LISTS, *_LIMITS, "cell_timeout_s", "model_options"})


def chosen(message: run_pb2.RunSettings) -> dict[str, object]:
    """The settings that the message sets, unchecked. Raises `InvalidInput` for options that are no JSON object."""
    given: dict[str, object] = {name: getattr(message, name) for name in _SINGLE if _sets(message, name)}
    given |= {name: tuple(getattr(message, name)) for name in _LISTS if getattr(message, name)}
    if message.HasField("cell_timeout"):
        given["cell_timeout_s"] = seconds_of(message.cell_timeout)
    given |= {name: getattr(message.limits, name) for name in _LIMITS if _sets(message.limits, name)}
    if message.HasField("model_options_json"):
        given["model_options"] = _options(message.model_options_json)
    return given


def settings_message(given: Mapping[str, Any]) -> run_pb2.RunSettings:
    """The message that sets those of `NAMES` that are given and not None."""
    message = run_pb2.RunSettings()
    for name in _SINGLE:
        if (value := given.get(name)) is not None:
            setattr(message, name, clean(value) if isinstance(value, str) else value)
    for name in _LISTS:
        getattr(message, name).extend(clean(each) for each in given.get(name) or ())
    if (cell_timeout_s := given.get("cell_timeout_s")) is not None:
        write_duration(message.cell_timeout, cell_timeout_s)
    for name in _LIMITS:
        if (value := given.get(name)) is not None:
            setattr(message.limits, name, value)
    if options := given.get("model_options"):
        message.model_options_json = clean(msgspec.json.encode(options).decode())
    return message


def limits_value(message: events_pb2.Limits) -> Limits:
    return parse(Limits, message)


def _sets(message: Message, name: str) -> bool:
    return message.HasField(name)


def _options(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidInput("model_options_json", f"must be a JSON object ({error}).") from None
    except RecursionError:
        raise InvalidInput("model_options_json", "is nested too deeply.") from None
