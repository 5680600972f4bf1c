"""An OpenAI-compatible server on loopback whose models are scripts.

    from orchestrator.testing.scripted import Reply, ScriptedServer, sequence

    async with ScriptedServer({"planner": sequence(["```repl\\nx = 6 * 7\\n```", "FINAL(x)"])}) as server:
        ...  # AsyncOpenAI(base_url=server.base_url, api_key="scripted")

For demos without a key, tests and benchmarks. Only the model is scripted, and the responses say so:
`system_fingerprint` is "scripted", and `/v1/models` lists each as owned by "scripted-policy".
`ScriptedServerThread` is the same for code that is not async, `python -m orchestrator.testing.scripted` the
same as a program. Needs the "testing" extra (aiohttp).
"""

from orchestrator.testing.scripted.chat import (
    ApiError,
    ChatRequest,
    Damage,
    Damaged,
    Disconnect,
    Hang,
    Message,
    Outcome,
    Policy,
    RawBody,
    Reply,
    Usage,
    UsageReport,
    ask,
)
from orchestrator.testing.scripted.fault_spec import FaultSpecError, parse_faults
from orchestrator.testing.scripted.faults import (
    Fault,
    bend,
    client_error,
    context_length_exceeded,
    context_window,
    damage,
    every,
    finishing,
    first_attempts,
    html_page,
    http_date,
    insufficient_quota,
    latency,
    model_not_found,
    on,
    ordinals,
    rate_limited,
    refusing,
    respond,
    server_error,
    share,
    with_faults,
    with_text,
    without_usage,
)
from orchestrator.testing.scripted.policies import (
    Predicate,
    Step,
    always,
    any_user_has,
    by_depth,
    constant,
    echo,
    held_until,
    last_user_has,
    last_user_matches,
    rendezvous,
    route,
    sequence,
    system_has,
)
from orchestrator.testing.scripted.reading import NOT_FOUND, read_text
from orchestrator.testing.scripted.record import RecordedRequest, RequestLog, RequestState
from orchestrator.testing.scripted.script import Script, ScriptError, parse_script
from orchestrator.testing.scripted.server import ANY_MODEL, ScriptedServer
from orchestrator.testing.scripted.thread import ScriptedServerThread
from orchestrator.testing.scripted.wire import parse_request

__all__ = [
    "ANY_MODEL",
    "NOT_FOUND",
    "ApiError",
    "ChatRequest",
    "Damage",
    "Damaged",
    "Disconnect",
    "Fault",
    "FaultSpecError",
    "Hang",
    "Message",
    "Outcome",
    "Policy",
    "Predicate",
    "RawBody",
    "RecordedRequest",
    "Reply",
    "RequestLog",
    "RequestState",
    "Script",
    "ScriptError",
    "ScriptedServer",
    "ScriptedServerThread",
    "Step",
    "Usage",
    "UsageReport",
    "always",
    "any_user_has",
    "ask",
    "bend",
    "by_depth",
    "client_error",
    "constant",
    "context_length_exceeded",
    "context_window",
    "damage",
    "echo",
    "every",
    "finishing",
    "first_attempts",
    "held_until",
    "html_page",
    "http_date",
    "insufficient_quota",
    "last_user_has",
    "last_user_matches",
    "latency",
    "model_not_found",
    "on",
    "ordinals",
    "parse_faults",
    "parse_request",
    "parse_script",
    "rate_limited",
    "read_text",
    "refusing",
    "rendezvous",
    "respond",
    "route",
    "sequence",
    "server_error",
    "share",
    "system_has",
    "with_faults",
    "with_text",
    "without_usage",
]
