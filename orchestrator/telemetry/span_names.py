"""What a span is called in a trace, and what is said of it: in OpenTelemetry's words where it has them.

What people and models wrote (queries, prompts, answers, code, output) is said only when `content` is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator import events as ev
from orchestrator.telemetry import failure_kinds, genai
from orchestrator.values import CellResult, Message

Value = str | bool | int | float | Sequence[str]
Attributes = dict[str, Value]

_MOST_CHARACTERS = 65_536  # of one attribute; collectors refuse spans of megabytes


@dataclass(frozen=True, slots=True)
class Opening:
    name: str
    attributes: Attributes
    to_model: bool = False  # leaves this process


@dataclass(frozen=True, slots=True)
class Closing:
    outcome: ev.Outcome
    attributes: Attributes
    error: str = ""


def opening(event: ev.Event, *, content: bool) -> Opening | None:
    """What to open a span with; None for an event that opens none."""
    match event:
        case ev.RunStarted():
            return Opening(
                f"{genai.INVOKE_WORKFLOW} rlm",
                {
                    genai.OPERATION_NAME: genai.INVOKE_WORKFLOW,
                    genai.WORKFLOW_NAME: "rlm",
                    "rlm.run.id": event.run_id,
                    "rlm.max_depth": event.max_depth,
                    **_given(content, {genai.INPUT_MESSAGES: _message("user", event.query)}),
                },
            )
        case ev.RlmStarted():
            return Opening(
                f"{genai.INVOKE_AGENT} rlm",
                {
                    genai.OPERATION_NAME: genai.INVOKE_AGENT,
                    genai.AGENT_NAME: "rlm",
                    genai.PROVIDER_NAME: genai.PROVIDER,
                    genai.REQUEST_MODEL: event.model,
                    "rlm.max_iterations": event.max_iterations,
                    **({"rlm.context.bytes": event.context.size_bytes} if event.context else {}),
                    **_given(content, {genai.INPUT_MESSAGES: _message("user", event.query)}),
                },
            )
        case ev.IterationStarted():
            return Opening("iteration", {"rlm.iteration": event.number, "rlm.last_resort": event.last_resort})
        case ev.ModelCallStarted():
            return Opening(
                f"{genai.CHAT} {event.model}",
                {
                    genai.OPERATION_NAME: genai.CHAT,
                    genai.PROVIDER_NAME: genai.PROVIDER,
                    genai.REQUEST_MODEL: event.model,
                    **(_given(content, {genai.INPUT_MESSAGES: _messages(event.messages)}) if content else {}),
                },
                to_model=True,
            )
        case ev.SandboxStarted():
            return Opening("sandbox", {"rlm.sandbox.name": event.name, "rlm.sandbox.warm": event.warm})
        case ev.CellStarted():
            return Opening(
                f"{genai.EXECUTE_TOOL} python",
                {
                    genai.OPERATION_NAME: genai.EXECUTE_TOOL,
                    genai.TOOL_NAME: "python",
                    genai.TOOL_TYPE: "function",
                    **_given(content, {genai.TOOL_CALL_ARGUMENTS: event.code}),
                },
            )
        case ev.BatchStarted():
            return Opening(
                "batch",
                {
                    "rlm.batch.size": event.size,
                    "rlm.batch.distinct": event.distinct,
                    "rlm.batch.max_concurrent": event.max_concurrent,
                },
            )
        case ev.QueryStarted():
            return Opening(
                "query",
                {
                    "rlm.query.index": event.index,
                    "rlm.query.recursive": event.recursive,
                    **_given(content, {genai.INPUT_MESSAGES: _message("user", event.prompt)}),
                },
            )
        case _:
            return None


def closing(event: ev.Event, *, content: bool) -> Closing | None:
    """What to close a span with; None for an event that closes none."""
    match event:
        case ev.RunEnded():
            spent = event.spent
            return Closing(
                event.outcome,
                {
                    genai.USAGE_INPUT_TOKENS: spent.usage.input_tokens,
                    genai.USAGE_OUTPUT_TOKENS: spent.usage.output_tokens,
                    "rlm.model_calls": spent.calls,
                    "rlm.cost_usd": spent.cost_usd,
                    "rlm.sandboxes": spent.sandboxes,
                    **_ending(event, content),
                },
                event.error,
            )
        case ev.RlmEnded():
            return Closing(event.outcome, _ending(event, content), event.error)
        case ev.IterationEnded():
            return Closing(event.outcome, {})
        case ev.ModelCallEnded():
            return Closing(event.outcome, _reply(event, content), event.error)
        case ev.SandboxEnded():
            return Closing(event.outcome, {}, event.error)
        case ev.CellEnded(result=CellResult() as result):
            told: Attributes = {"rlm.cell.status": result.status.value, "rlm.cell.seconds": result.seconds}
            if result.error is not None:
                told[genai.ERROR_TYPE] = result.error.type_name[:100]
            return Closing(
                event.outcome, told | _given(content, {genai.TOOL_CALL_RESULT: result.stdout.text}), event.error
            )
        case ev.CellEnded():
            return Closing(event.outcome, {}, event.error)
        case ev.BatchEnded():
            return Closing(event.outcome, {"rlm.batch.failed": event.failed})
        case ev.QueryEnded():
            failure: Attributes = {genai.ERROR_TYPE: event.failure.value} if event.failure else {}
            return Closing(
                event.outcome,
                failure | _given(content, {genai.OUTPUT_MESSAGES: _message("assistant", event.text or "")}),
                event.error,
            )
        case _:
            return None


def _ending(event: ev.RunEnded | ev.RlmEnded, content: bool) -> Attributes:
    ending: Attributes = {"rlm.ending": event.ending.value} if event.ending else {}
    return ending | _given(content, {genai.OUTPUT_MESSAGES: _message("assistant", event.answer or "")})


def _reply(event: ev.ModelCallEnded, content: bool) -> Attributes:
    told: Attributes = {"rlm.cached": event.cached}
    if event.outcome is ev.Outcome.OK:
        told[genai.RESPONSE_MODEL] = event.model
    else:
        told[genai.ERROR_TYPE] = (
            "cancelled" if event.outcome is ev.Outcome.CANCELLED else failure_kinds.of_model_call(event.error)
        )
    if event.finish_reason is not None:
        told[genai.RESPONSE_FINISH_REASONS] = (event.finish_reason.value,)
    if event.usage is not None and not event.cached:
        told[genai.USAGE_INPUT_TOKENS] = event.usage.input_tokens
        told[genai.USAGE_OUTPUT_TOKENS] = event.usage.output_tokens
        told[genai.USAGE_CACHE_READ_INPUT_TOKENS] = event.usage.cached_input_tokens
    if event.cost_usd is not None:
        told["rlm.cost_usd"] = event.cost_usd
    return told | _given(content, {genai.OUTPUT_MESSAGES: _message("assistant", event.text or "")})


def _given(content: bool, attributes: Mapping[str, str]) -> Attributes:
    return {name: text[:_MOST_CHARACTERS] for name, text in attributes.items()} if content else {}


def _message(role: str, text: str) -> str:
    return json.dumps([_parts(role, text)])


def _messages(messages: Sequence[Message]) -> str:
    return json.dumps([_parts(message.role.value, message.content) for message in messages])


def _parts(role: str, text: str) -> dict[str, object]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}
