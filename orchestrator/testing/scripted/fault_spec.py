"""Faults as a query string, for clients in any language and for the command line.

As a suffix of the model name, `echo?latency=0.2&fail=429&times=2&retry_after=0.1`, or in the header
`X-Scripted-Faults: fail=cut&after=3`.

    latency=SECONDS          wait first
    window=TOKENS            `context_length_exceeded` for longer prompts
    fail=WHAT                a status from 400 to 599, or one of the names in `NAMED_FAULTS`
    retry_after=SECONDS      with an error status: the Retry-After header, as written
    retry_after_ms=NUMBER    with an error status: the retry-after-ms header
    retry_after_date=SECONDS with an error status: Retry-After as an HTTP date so far ahead
    after=CHUNKS             with `cut`, `stall` and `malformed` on a stream: intact chunks first (default 1)

and at most one of these, to say when `fail` strikes (else: always):

    times=N                  the first N attempts of each prompt
    every=N                  every Nth request that the server gets
    rate=SHARE, seed=NUMBER  a share of all attempts, from 0 to 1; the seed is 0 if it is left out
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from urllib.parse import parse_qsl

from orchestrator.testing.scripted import faults
from orchestrator.testing.scripted.chat import ApiError, Damage, Disconnect, Hang, Outcome
from orchestrator.testing.scripted.faults import Fault
from orchestrator.testing.scripted.policies import Predicate

HEADER = "x-scripted-faults"

NAMED_FAULTS: Mapping[str, Fault] = {
    "hang": faults.respond(Hang()),
    "disconnect": faults.respond(Disconnect()),
    "html": faults.respond(faults.html_page(502)),
    "html_200": faults.respond(faults.html_page(200)),
    "context_length_exceeded": faults.respond(faults.context_length_exceeded()),
    "insufficient_quota": faults.respond(faults.insufficient_quota()),
    "missing_usage": faults.without_usage(),
    "null_content": faults.with_text(None),
    "empty_content": faults.with_text(""),
    "refusal": faults.refusing(),
    "length": faults.finishing("length"),
    "content_filter": faults.finishing("content_filter"),
    **{damage.value: faults.damage(damage) for damage in Damage},
}

_FAILURE_KEYS = ("fail", "retry_after", "retry_after_ms", "retry_after_date", "after")
_KEYS = frozenset(("latency", "window", *_FAILURE_KEYS, "times", "every", "rate", "seed"))
_AFTER_RULE = "fault key 'after' counts chunks of a stream: it needs fail=cut, fail=stall or fail=malformed"


class FaultSpecError(ValueError):
    """A fault specification that names an unknown key, or gives a value that its rule forbids."""


def split_model(name: str) -> tuple[str, str]:
    """("echo", "fail=429") for "echo?fail=429"; the second is empty where there is no suffix."""
    model, _, spec = name.partition("?")
    return model, spec


@lru_cache(maxsize=1024)
def parse_faults(spec: str) -> tuple[Fault, ...]:
    """The faults of a specification, outermost first.

    Raises FaultSpecError, which names the key and its rule.
    """
    try:
        pairs = parse_qsl(spec, keep_blank_values=True, strict_parsing=bool(spec))
    except ValueError as error:
        raise FaultSpecError(f"faults {spec!r} must be written as key=value&key=value") from error
    values = dict(pairs)
    if len(values) < len(pairs):
        raise FaultSpecError(f"faults {spec!r} name a key twice: give each key once")
    if unknown := sorted(values.keys() - _KEYS):
        raise FaultSpecError(f"fault key {unknown[0]!r} is unknown: use one of {', '.join(sorted(_KEYS))}")
    found: list[Fault] = []
    if "latency" in values:
        found.append(faults.latency(_number(values, "latency")))
    if "window" in values:
        found.append(faults.context_window(_count(values, "window")))
    if "fail" in values:
        found.append(faults.on(_when(values), _failure(values)))
    elif dependent := sorted(values.keys() - {"latency", "window"}):
        raise FaultSpecError(f"fault key {dependent[0]!r} says how to fail: it needs 'fail' beside it")
    return tuple(found)


def _failure(values: Mapping[str, str]) -> Fault:
    what = values["fail"]
    retry = sorted(key for key in values if key.startswith("retry_after"))
    if what.isdecimal() and 400 <= int(what) <= 599:
        if "after" in values:
            raise FaultSpecError(_AFTER_RULE)
        return faults.respond(_error(int(what), values))
    if retry:
        raise FaultSpecError(f"fault key {retry[0]!r} is a header of an error: it needs fail=STATUS")
    if what not in NAMED_FAULTS:
        names = ", ".join(sorted(NAMED_FAULTS))
        raise FaultSpecError(f"fail={what!r} is unknown: use a status from 400 to 599, or one of {names}")
    if "after" not in values:
        return NAMED_FAULTS[what]
    if what not in (Damage.CUT.value, Damage.STALL.value, Damage.MALFORMED.value):
        raise FaultSpecError(_AFTER_RULE)
    return faults.damage(Damage(what), after=_count(values, "after", least=0))


def _error(status: int, values: Mapping[str, str]) -> Callable[[], Outcome]:
    error = faults.server_error(status) if status >= 500 else faults.client_error(status)
    fixed: tuple[tuple[str, str], ...] = ()
    if "retry_after" in values:
        _number(values, "retry_after")
        fixed += (("Retry-After", values["retry_after"]),)
    if "retry_after_ms" in values:
        _number(values, "retry_after_ms")
        fixed += (("retry-after-ms", values["retry_after_ms"]),)
    if "retry_after_date" not in values:
        return lambda: replace(error, headers=fixed)
    if "retry_after" in values:
        raise FaultSpecError("retry_after and retry_after_date are one header: give one of them")
    ahead = _number(values, "retry_after_date")

    def dated() -> ApiError:
        return replace(error, headers=(*fixed, ("Retry-After", faults.http_date(ahead))))

    return dated


def _when(values: Mapping[str, str]) -> Predicate:
    given = [key for key in ("times", "every", "rate") if key in values]
    if len(given) > 1:
        raise FaultSpecError(f"{' and '.join(given)} all say when to fail: give one of them")
    if "seed" in values and given != ["rate"]:
        raise FaultSpecError("fault key 'seed' belongs to 'rate': it needs 'rate' beside it")
    match given:
        case ["times"]:
            return faults.first_attempts(_count(values, "times"))
        case ["every"]:
            return faults.every(_count(values, "every"))
        case ["rate"]:
            rate = _number(values, "rate")
            if rate > 1:
                raise FaultSpecError(f"rate={values['rate']!r} must be a share from 0 to 1")
            return faults.share(rate, seed=_count(values, "seed", least=0) if "seed" in values else 0)
        case _:
            return lambda request: True


def _number(values: Mapping[str, str], key: str) -> float:
    try:
        number = float(values[key])
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise FaultSpecError(f"{key}={values[key]!r} must be a number of 0 or more")
    return number


def _count(values: Mapping[str, str], key: str, *, least: int = 1) -> int:
    text = values[key]
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise FaultSpecError(f"{key}={text!r} must be a whole number of {least} or more")
    return int(text)
