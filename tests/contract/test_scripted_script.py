"""Policies from JSON."""

import json
from typing import Any

import pytest

from orchestrator.testing.scripted import Hang, Outcome, Reply, ScriptError, ask, parse_request, parse_script


async def outcome_of(policy: Any, *texts: str, system: str = "") -> Outcome:
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    script = parse_script(json.dumps({"models": {"m": policy}}))
    return await ask(script.policies["m"], parse_request({"model": "m", "messages": messages}))


async def test_a_string_is_a_ready_policy_or_a_text() -> None:
    assert await outcome_of("echo", "hi") == Reply("hi")
    assert await outcome_of("read", "What is 6 * 7?") == Reply("42")
    assert await outcome_of("yes", "hi") == Reply("yes")
    assert await outcome_of({"text": "echo"}, "hi") == Reply("echo")


async def test_replies_come_one_a_turn() -> None:
    script = {"replies": ["one", "echo"], "after": "over"}

    assert await outcome_of(script, "q") == Reply("one")
    assert await outcome_of(script, "q", "one", "q2") == Reply("q2")
    assert await outcome_of(script, "q", "one", "q2", "q2", "q3") == Reply("over")


async def test_depths_and_routes_nest() -> None:
    script = {
        "depths": [{"replies": ["root"]}, "deeper"],
        "leaf": {
            "routes": [{"user_has": "sun", "then": "dry"}, {"user_matches": "^r", "then": "wet"}],
            "otherwise": "?",
        },
    }

    assert await outcome_of(script, "q", system="depth 0") == Reply("root")
    assert await outcome_of(script, "q", system="depth 1") == Reply("deeper")
    assert await outcome_of(script, "the sun") == Reply("dry")
    assert await outcome_of(script, "rain") == Reply("wet")
    assert await outcome_of(script, "fog") == Reply("?")


async def test_a_policy_may_bring_faults_of_its_own() -> None:
    assert await outcome_of({"text": "x", "faults": "fail=hang&times=1"}, "hi") == Hang()


def test_faults_for_all_models_are_kept() -> None:
    assert parse_script('{"models": {"m": "echo"}, "faults": "latency=1"}').faults == "latency=1"


@pytest.mark.parametrize(
    ("script", "rule"),
    [
        ("{", "not JSON"),
        ("[]", '"models"'),
        ('{"models": {}}', "non-empty"),
        ('{"models": {"m": "echo"}, "model": 1}', "unknown key 'model'"),
        ('{"models": {"m": 5}}', "models.m must be a text or an object"),
        ('{"models": {"m": {}}}', "exactly one of text, replies, depths, routes"),
        ('{"models": {"m": {"text": "a", "replies": ["b"]}}}', "exactly one of"),
        ('{"models": {"m": {"text": 5}}}', "models.m.text must be a text"),
        ('{"models": {"m": {"text": "a", "leaf": "b"}}}', "'leaf' that does not go with 'text'"),
        ('{"models": {"m": {"replies": []}}}', "models.m.replies must be a non-empty array"),
        ('{"models": {"m": {"replies": ["a", 5]}}}', "models.m.replies[1] must be a text or an object"),
        ('{"models": {"m": {"depths": ["a"]}}}', "models.m needs 'leaf'"),
        (
            '{"models": {"m": {"routes": [{"then": "a"}], "otherwise": "b"}}}',
            "models.m.routes[0] must have exactly one",
        ),
        ('{"models": {"m": {"routes": [{"user_matches": "(", "then": "a"}], "otherwise": "b"}}}', "regular expression"),
        ('{"models": {"m": {"routes": [{"user_has": "x"}], "otherwise": "b"}}}', "models.m.routes[0] needs 'then'"),
        ('{"models": {"m": {"text": "a", "faults": "fail=x"}}}', "models.m.faults: fail='x' is unknown"),
        ('{"models": {"m": "echo"}, "faults": 5}', "script.faults must be a text"),
    ],
)
def test_a_bad_script_is_refused_with_the_place_and_the_rule(script: str, rule: str) -> None:
    with pytest.raises(ScriptError) as caught:
        parse_script(script)

    assert rule in str(caught.value)
