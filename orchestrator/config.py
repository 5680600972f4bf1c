"""Every setting, as one frozen value that is read once, at the edge.

A setting is looked for, in this order: what the caller passes, the environment, a `.env` file, the default here. Its
variable is `RLM_` and its name in capitals, unless `_VARIABLES` says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_type_hints

import msgspec
from dotenv import dotenv_values

from orchestrator.errors import InvalidInput
from orchestrator.values import Limits

_VARIABLES = {
    "api_key": "OPENAI_API_KEY",
    "base_url": "OPENAI_BASE_URL",
}


def _default_state_dir() -> str:
    # /tmp is often a RAM disk, and a context may be a gigabyte; a socket's path must stay below 108 bytes.
    return f"/var/tmp/rlm-{os.getuid()}"  # its owner and mode are checked before use


# msgspec takes such a rule on a number, and refuses it on a union of a number and None.
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
_Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]


def _setting(text: str, **rules: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **rules)


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model is served, when it is not where the others are."""

    base_url: str
    api_key: str | None = None


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may choose for itself."""

    # models
    model: Annotated[str, _setting("the root's model", min_length=1)] = "gpt-5-mini"
    recursive_model: Annotated[str | None, _setting("the sub-calls' model; the root's when unset")] = None
    models: Annotated[
        tuple[str, ...],
        _setting("models by depth, comma-separated, the last for all below; overrides both above"),
    ] = ()
    max_output_tokens: Annotated[
        _Count | None, _setting("most tokens of one reply; the model's own limit when unset")
    ] = None
    model_options: Annotated[
        dict[str, Any], _setting('further request options as JSON, for example {"reasoning_effort": "low"}')
    ] = {}

    # recursion
    max_depth: Annotated[int, _setting("depths that have a REPL: 1 is a root with plain sub-calls", ge=1, le=16)] = 1
    adaptive_depth: Annotated[
        bool, _setting("small sub-calls are plain completions, also where the depth has REPLs; see depth.md")
    ] = False
    max_iterations: Annotated[int, _setting("the root's iterations; depth d gets max(3, this // (d + 1))", ge=1)] = 20
    instructions: Annotated[
        tuple[str, ...],
        _setting("extra instructions by depth, for the system prompt; a JSON list in the environment"),
    ] = ()
    cell_timeout_s: Annotated[float, _setting("a cell's running time; waiting for answers is not counted", gt=0)] = (
        120.0
    )

    # the whole tree
    max_calls: Annotated[_Count | None, _setting("model calls of a whole run")] = None
    max_tokens: Annotated[_Count | None, _setting("tokens of a whole run, input and output")] = None
    max_cost_usd: Annotated[_Positive | None, _setting("cost of a whole run, in USD")] = None
    max_seconds: Annotated[_Positive | None, _setting("wall-clock time of a whole run")] = None
    max_sandboxes: Annotated[_Count | None, _setting("sandboxes that a whole run may open, ever")] = 1000

    @property
    def limits(self) -> Limits:
        return Limits(
            max_calls=self.max_calls,
            max_tokens=self.max_tokens,
            max_cost_usd=self.max_cost_usd,
            max_seconds=self.max_seconds,
            max_sandboxes=self.max_sandboxes,
        )

    def model_at(self, depth: int) -> str:
        if self.models:
            return self.models[min(depth, len(self.models) - 1)]
        return self.model if depth == 0 else self.recursive_model or self.model


class Config(RunSettings, frozen=True, kw_only=True):
    """All settings: a host's, and the defaults of its runs. `Config.load()` reads and checks; `describe()` tells."""

    # the model's API
    api_key: Annotated[str | None, _setting("the API key; never leaves the orchestrator")] = None
    base_url: Annotated[str | None, _setting("an OpenAI-compatible server's address, with its /v1")] = None
    endpoints: Annotated[
        dict[str, Endpoint],
        _setting('models served elsewhere, as JSON: {"small": {"base_url": "http://127.0.0.1:8080/v1"}}'),
    ] = {}
    prices: Annotated[
        dict[str, dict[str, float]],
        _setting('prices as JSON, in USD a million tokens: {"my-model": {"input": 1.0, "output": 4.0}}'),
    ] = {}
    cache_mib: Annotated[int, _setting("answers kept to answer the same question again, in MiB; 0: none", ge=0)] = 0
    max_concurrent: Annotated[int, _setting("API requests at a time, over all runs and depths", ge=1)] = 32
    request_timeout_s: Annotated[float, _setting("one API request, streaming included", gt=0)] = 600.0
    max_attempts: Annotated[int, _setting("tries of one model call, the first included", ge=1)] = 6

    # sandboxes
    cell_grace_s: Annotated[float, _setting("from the interrupt of a cell to the kill of its worker", gt=0)] = 5.0
    image: Annotated[str, _setting("the sandbox image: a tag, resolved once, or an ID", min_length=1)] = (
        "rlm-sandbox:latest"
    )
    runtime: Annotated[
        str | None, _setting("the container runtime, for example runsc; the engine's own when unset")
    ] = None
    memory_mib: Annotated[int, _setting("memory of one sandbox, in MiB", ge=64)] = 2048
    cpus: Annotated[float, _setting("processors of one sandbox", gt=0)] = 1.0
    pids: Annotated[int, _setting("processes and threads of one sandbox", ge=32)] = 256
    tmp_mib: Annotated[int, _setting("size of a sandbox's /tmp, in MiB; it counts as memory", ge=1)] = 256
    capacity: Annotated[int, _setting("sandboxes at a time, over all runs and depths; at least max_depth", ge=1)] = 32
    queue_timeout_s: Annotated[float, _setting("waiting for room for a sandbox", gt=0)] = 3600.0
    start_timeout_s: Annotated[float, _setting("a sandbox's start, to its first message", gt=0)] = 60.0
    pool_min: Annotated[int, _setting("sandboxes kept ready ahead of need", ge=0)] = 0
    pool_max: Annotated[int, _setting("most sandboxes kept ready when demand is high", ge=0)] = 4
    max_lifetime_s: Annotated[float, _setting("a sandbox destroys itself after this time", gt=0)] = 86_400.0
    state_dir: Annotated[str, _setting("sockets and contexts of live sandboxes; a local disk, a short path")] = (
        msgspec.field(default_factory=_default_state_dir)
    )
    engine_state_dir: Annotated[
        str | None, _setting("state_dir as the engine's host calls it; found out where this runs in a container")
    ] = None

    def __post_init__(self) -> None:
        if self.capacity < self.max_depth:
            raise InvalidInput(
                "capacity",
                f"must be at least max_depth ({self.max_depth}) so that a recursion can finish; it is {self.capacity}.",
                f"Set RLM_CAPACITY={self.max_depth} or more.",
            )
        if self.pool_max < self.pool_min:
            raise InvalidInput(
                "pool_max",
                f"must be at least pool_min ({self.pool_min}); it is {self.pool_max}.",
                "Raise RLM_POOL_MAX.",
            )

    def host(self) -> Config:
        """Only what is the host's: two configurations with the same host can share an orchestrator."""
        runs = RunSettings()
        return msgspec.structs.replace(self, **{name: getattr(runs, name) for name in RunSettings.__struct_fields__})

    @classmethod
    def load(
        cls,
        overrides: Mapping[str, object] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        dotenv: Path | None = Path(".env"),
    ) -> Config:
        """Reads the settings. An override of None counts as not given; so does an empty variable.

        Raises `InvalidInput` naming the setting, its rule and where its value came from.
        """
        found = _read(overrides or {}, os.environ if environ is None else environ, dotenv)
        checked: dict[str, Any] = {}
        for name, (raw, origin) in found.items():
            checked[name] = _check(name, raw, origin)
        return cls(**checked)

    @classmethod
    def origins(
        cls,
        overrides: Mapping[str, object] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        dotenv: Path | None = Path(".env"),
    ) -> dict[str, str]:
        """Where each setting that is not a default comes from, in words."""
        found = _read(overrides or {}, os.environ if environ is None else environ, dotenv)
        return {name: origin for name, (_, origin) in found.items()}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a person may want to know of one setting."""

    name: str
    variable: str
    default: object
    text: str


_HINTS = get_type_hints(Config, include_extras=True)


def describe() -> list[Setting]:
    """All settings, in the order of `Config`."""
    settings = []
    for info in msgspec.structs.fields(Config):
        default = info.default_factory() if info.default is msgspec.NODEFAULT else info.default
        settings.append(Setting(info.name, variable(info.name), default, _description(info.name)))
    return settings


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return _VARIABLES.get(name, f"RLM_{name.upper()}")


def _description(name: str) -> str:
    for extra in get_args(_HINTS[name])[1:]:
        if isinstance(extra, msgspec.Meta) and extra.description:
            return extra.description
    return ""


def _read(
    overrides: Mapping[str, object], environ: Mapping[str, str], dotenv: Path | None
) -> dict[str, tuple[object, str]]:
    unknown = sorted(set(overrides) - set(_HINTS))
    if unknown:
        raise InvalidInput(unknown[0], "is not a setting.", f"Settings are: {', '.join(_HINTS)}.")
    file_values = _dotenv(dotenv) if dotenv is not None else {}
    found: dict[str, tuple[object, str]] = {}
    for name in _HINTS:
        if overrides.get(name) is not None:
            found[name] = (overrides[name], "given by the caller")
        elif environ.get(variable(name)):
            found[name] = (_parse(name, environ[variable(name)]), f"from the variable {variable(name)}")
        elif file_values.get(variable(name)):
            found[name] = (
                _parse(name, file_values[variable(name)] or ""),
                f"from {variable(name)} in {dotenv}",
            )
    return found


def _dotenv(path: Path) -> dict[str, str | None]:
    try:
        return dotenv_values(path) if path.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput(
            str(path), f"cannot be read: {reason}.", "Correct the file or its rights, or remove it."
        ) from None


def _parse(name: str, text: str) -> object:
    """A variable's text as what the setting holds; plain text stays for `_check` to convert."""
    text = text.strip()
    if name in ("model_options", "prices", "instructions", "endpoints"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise InvalidInput(variable(name), f"must be JSON ({error}).", f"It is {text!r}.") from None
    if name == "models":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _check(name: str, raw: object, origin: str) -> Any:
    try:
        return msgspec.convert(raw, _HINTS[name], strict=not isinstance(raw, str))
    except msgspec.ValidationError as error:
        shown = "(not shown)" if name in ("api_key", "endpoints") else repr(raw)
        raise InvalidInput(name, f"{error} (it is {shown}, {origin}).", f"It is: {_description(name)}.") from None
