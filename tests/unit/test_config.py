"""Settings: where they come from, what they must be, what is said when they are not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.config import Config, Endpoint, Setting, describe, variable
from orchestrator.errors import InvalidInput


def load(environ: dict[str, str] | None = None, dotenv: Path | None = None, **overrides: object) -> Config:
    return Config.load(overrides, environ=environ or {}, dotenv=dotenv)


def test_the_caller_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("RLM_MODEL=from-file\nRLM_MAX_DEPTH=2\nRLM_MAX_ITERATIONS=7\n")
    config = load({"RLM_MODEL": "from-environment", "RLM_MAX_DEPTH": "3"}, file, model="from-caller")
    assert (config.model, config.max_depth, config.max_iterations) == ("from-caller", 3, 7)


def test_an_empty_variable_and_an_override_of_none_count_as_not_given() -> None:
    assert load({"RLM_MAX_DEPTH": ""}, model=None) == load()


# As a person would write them; a new setting needs a line here.
WRITTEN: dict[str, tuple[str, object]] = {
    "model": ("m", "m"),
    "recursive_model": ("m", "m"),
    "models": ("a, b", ("a", "b")),
    "max_output_tokens": ("100", 100),
    "model_options": ('{"temperature": 0}', {"temperature": 0}),
    "max_depth": ("3", 3),
    "adaptive_depth": ("true", True),
    "max_iterations": ("7", 7),
    "instructions": ('["be brief"]', ("be brief",)),
    "cell_timeout_s": ("1.5", 1.5),
    "max_calls": ("9", 9),
    "max_tokens": ("9", 9),
    "max_cost_usd": ("0.5", 0.5),
    "max_seconds": ("60", 60.0),
    "max_sandboxes": ("9", 9),
    "api_key": ("k", "k"),
    "base_url": ("http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1"),
    "endpoints": ('{"m": {"base_url": "u"}}', {"m": Endpoint("u")}),
    "prices": ('{"m": {"input": 1, "output": 2}}', {"m": {"input": 1.0, "output": 2.0}}),
    "cache_mib": ("64", 64),
    "max_concurrent": ("4", 4),
    "request_timeout_s": ("5", 5.0),
    "max_attempts": ("2", 2),
    "cell_grace_s": ("2", 2.0),
    "image": ("i", "i"),
    "runtime": ("runsc", "runsc"),
    "memory_mib": ("512", 512),
    "cpus": ("0.5", 0.5),
    "pids": ("64", 64),
    "tmp_mib": ("16", 16),
    "capacity": ("8", 8),
    "queue_timeout_s": ("5", 5.0),
    "start_timeout_s": ("5", 5.0),
    "pool_min": ("1", 1),
    "pool_max": ("8", 8),
    "max_lifetime_s": ("60", 60.0),
    "state_dir": ("/var/tmp/x", "/var/tmp/x"),
    "engine_state_dir": ("/srv/rlm", "/srv/rlm"),
}


@pytest.mark.parametrize("setting", describe(), ids=lambda setting: setting.name)
def test_every_setting_can_be_written_in_the_environment_and_is_described(setting: Setting) -> None:
    text, value = WRITTEN[setting.name]
    assert getattr(load({variable(setting.name): text}), setting.name) == value
    assert setting.text


@pytest.mark.parametrize(
    ("environ", "named", "says"),
    [
        ({"RLM_MAX_DEPTH": "x"}, "max_depth", "variable RLM_MAX_DEPTH"),
        ({"RLM_MAX_DEPTH": "0"}, "max_depth", ">= 1"),
        ({"RLM_MAX_CALLS": "0"}, "max_calls", ">= 1"),
        ({"RLM_MAX_COST_USD": "-1"}, "max_cost_usd", "> 0"),
        ({"RLM_PRICES": "{"}, "RLM_PRICES", "must be JSON"),
        ({"RLM_ENDPOINTS": '{"m": {"url": "x"}}'}, "endpoints", "url"),
        ({"RLM_CAPACITY": "1", "RLM_MAX_DEPTH": "3"}, "capacity", "at least max_depth (3)"),
        ({"RLM_POOL_MIN": "5"}, "pool_max", "at least pool_min (5)"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(environ: dict[str, str], named: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(environ)
    assert caught.value.name == named
    assert says in str(caught.value)


def test_an_unknown_setting_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"max_dept: is not a setting.*max_depth"):
        load(max_dept=2)


def test_a_key_is_never_shown_in_an_error() -> None:
    with pytest.raises(InvalidInput) as caught:
        load(api_key=123456)
    assert "123456" not in str(caught.value)


def test_models_by_depth_and_their_defaults() -> None:
    assert [load(models=("a", "b")).model_at(d) for d in range(4)] == ["a", "b", "b", "b"]
    assert [load(model="a", recursive_model="b").model_at(d) for d in range(3)] == ["a", "b", "b"]
    assert [load(model="a").model_at(d) for d in range(2)] == ["a", "a"]


def test_configurations_that_differ_only_in_their_runs_share_a_host() -> None:
    one, other = load(model="a", max_depth=2, max_calls=3), load(model="b", cell_timeout_s=9.0)
    assert msgspec.json.encode(one.host()) == msgspec.json.encode(other.host())
    assert one.host() != load(memory_mib=100).host()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"RLM_MODEL=\xff\xfe")
    with pytest.raises(InvalidInput, match="not UTF-8") as caught:
        load({}, file)
    assert caught.value.name == str(file)
