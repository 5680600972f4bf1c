"""Policies from JSON, so that a program in any language can script the packaged server.

    {
      "models": {
        "planner": {
          "depths": [{"replies": ["```repl\nx = llm_query('How many words?\n\na b c')\n```", "FINAL(x)"]}],
          "leaf": "read"
        },
        "yes": "yes",
        "router": {"routes": [{"user_has": "weather", "then": {"text": "rain"}}], "otherwise": "echo"}
      },
      "faults": "latency=0.05"
    }

A policy is one of

    "echo", "read"                         the ready policy of that name
    {"text": TEXT}                         the same text for each request
    {"replies": [POLICY or TEXT, ...], "after": POLICY or TEXT}      one a turn; "after" is optional
    {"depths": [POLICY, ...], "leaf": POLICY}                        by the depth in the system prompt
    {"routes": [{"user_has" | "user_matches" | "system_has": TEXT, "then": POLICY}, ...], "otherwise": POLICY}

each with an optional "faults": a fault specification. Any other string is a text.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.testing.scripted import policies
from orchestrator.testing.scripted.chat import Policy
from orchestrator.testing.scripted.fault_spec import FaultSpecError, parse_faults
from orchestrator.testing.scripted.faults import with_faults
from orchestrator.testing.scripted.policies import Predicate
from orchestrator.testing.scripted.reading import read_text

READY: Mapping[str, Policy] = {"echo": policies.echo, "read": read_text}

_PREDICATES: Mapping[str, Callable[[str], Predicate]] = {
    "user_has": policies.last_user_has,
    "user_matches": policies.last_user_matches,
    "system_has": policies.system_has,
}
_SHAPES: Mapping[str, frozenset[str]] = {
    "text": frozenset(),
    "replies": frozenset({"after"}),
    "depths": frozenset({"leaf"}),
    "routes": frozenset({"otherwise"}),
}


class ScriptError(ValueError):
    """A script that breaks a rule of the format; the message names the place and the rule."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a script says: the policies by model name, and the faults for all of them."""

    policies: Mapping[str, Policy]
    faults: str


def parse_script(text: str) -> Script:
    """The script of a JSON document. Raises ScriptError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ScriptError(f"the script is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("models"), dict) or not value["models"]:
        raise ScriptError('the script must be a JSON object with "models": a non-empty object of policies')
    if unknown := sorted(value.keys() - {"models", "faults"}):
        raise ScriptError(f'the script has an unknown key {unknown[0]!r}: use "models" and "faults"')
    models = {name: _policy(item, f"models.{name}") for name, item in value["models"].items()}
    return Script(models, _faults(value, "script"))


def _policy(value: Any, where: str) -> Policy:
    if isinstance(value, str):
        return READY.get(value) or policies.constant(value)
    if not isinstance(value, dict):
        raise ScriptError(f"{where} must be a text or an object, not {json.dumps(value)[:40]}")
    shapes = [shape for shape in _SHAPES if shape in value]
    if len(shapes) != 1:
        raise ScriptError(f"{where} must have exactly one of {', '.join(_SHAPES)}")
    shape = shapes[0]
    if unknown := sorted(value.keys() - _SHAPES[shape] - {shape, "faults"}):
        raise ScriptError(f"{where} has a key {unknown[0]!r} that does not go with {shape!r}")
    return with_faults(_shaped(shape, value, where), *parse_faults(_faults(value, where)))


def _shaped(shape: str, value: Mapping[str, Any], where: str) -> Policy:
    match shape:
        case "text":
            return policies.constant(_text(value["text"], f"{where}.text"))
        case "replies":
            steps = _policies(value, shape, where)
            after = _policy(value["after"], f"{where}.after") if "after" in value else None
            return policies.sequence(steps, after=after)
        case "depths":
            return policies.by_depth(_policies(value, shape, where), leaf=_required(value, "leaf", where))
        case _:
            items = enumerate(_list(value, shape, where))
            routes = [_route(item, f"{where}.routes[{i}]") for i, item in items]
            return policies.route(*routes, otherwise=_required(value, "otherwise", where))


def _route(value: Any, where: str) -> tuple[Predicate, Policy]:
    if not isinstance(value, dict):
        raise ScriptError(f"{where} must be an object")
    names = sorted(value.keys() - {"then"})
    if len(names) != 1 or names[0] not in _PREDICATES:
        raise ScriptError(f"{where} must have exactly one of {', '.join(_PREDICATES)}, and 'then'")
    argument = _text(value[names[0]], f"{where}.{names[0]}")
    try:
        predicate = _PREDICATES[names[0]](argument)
    except re.error as error:
        raise ScriptError(f"{where}.{names[0]} is not a regular expression: {error}") from error
    return predicate, _required(value, "then", where)


def _policies(value: Mapping[str, Any], key: str, where: str) -> list[Policy]:
    return [_policy(item, f"{where}.{key}[{i}]") for i, item in enumerate(_list(value, key, where))]


def _required(value: Mapping[str, Any], key: str, where: str) -> Policy:
    if key not in value:
        raise ScriptError(f"{where} needs {key!r}, a policy")
    return _policy(value[key], f"{where}.{key}")


def _list(value: Mapping[str, Any], key: str, where: str) -> list[Any]:
    items = value[key]
    if not isinstance(items, list) or not items:
        raise ScriptError(f"{where}.{key} must be a non-empty array")
    return items


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ScriptError(f"{where} must be a text")
    return value


def _faults(value: Mapping[str, Any], where: str) -> str:
    spec = _text(value.get("faults", ""), f"{where}.faults")
    try:
        parse_faults(spec)
    except FaultSpecError as error:
        raise ScriptError(f"{where}.faults: {error}") from error
    return spec
