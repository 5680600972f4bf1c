"""Logs: one safe line each, with its run, and without secrets."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import telemetry
from orchestrator.errors import InvalidInput
from orchestrator.events import Outcome
from orchestrator.folds.redaction import REDACTED
from orchestrator.telemetry import Address, LogFormat, RedactFilter, Redactor, TelemetrySettings
from orchestrator.telemetry.formats import JsonLines, TextLines
from orchestrator.telemetry.logs import LineWriter
from tests.unit.sample_runs import Script, whole_run

KEY = "kQ9.unlike/any+shape=1"
NASTY = "a\x1b[2Jb\nc\rd\x85e\u2028f\u202eg\x9bh\U000e0041i\x00j"


def logged(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("orchestrator.x", logging.INFO, "", 0, message, args, None)


def lines_of(log_format: LogFormat, *, content: bool = False, level: str = "info") -> list[str]:
    stream = io.StringIO()
    options = TelemetrySettings(log_format=log_format, secrets=(KEY,), content=content, log_level=level)
    with telemetry.open(options, environ={}, stream=stream) as told:
        whole_run(*told.sinks())
        logging.getLogger("orchestrator.sandbox.pool").warning("a module says %s", KEY)
    return stream.getvalue().splitlines()


def test_json_lines_have_run_and_span() -> None:
    lines = [json.loads(line) for line in lines_of(LogFormat.JSON)]
    events = [line for line in lines if line["logger"] == "orchestrator.events"]
    assert {line["run_id"] for line in events} == {"run_1"}
    assert [line["message"] for line in events][:2] == ["run started", "sandbox started"]
    call = next(line for line in events if line["event"] == "ModelCallEnded")
    assert (call["model"], call["input_tokens"], call["level"], call["depth"]) == ("big", 100, "info", 0)
    assert call["span"] > call["parent_span"]
    assert lines[-1]["message"] == f"a module says {REDACTED}"


def test_text_lines_are_one_line_each() -> None:
    lines = lines_of(LogFormat.TEXT)
    assert "1970-01-01T00:16:40.000Z INFO    orchestrator.events: run started" in lines[0]
    assert "run_id=run_1" in lines[0]


@pytest.mark.parametrize("log_format", LogFormat)
def test_nobody_s_words_are_logged_unless_asked_for(log_format: LogFormat) -> None:
    told = "\n".join(lines_of(log_format, level="debug"))
    for word in ("Who did it?", "gardener", "llm_batch(parts)", "seen", "Look.", "no more"):
        assert word not in told
    assert "gardener" in "\n".join(lines_of(log_format, content=True))


def test_logging_is_as_before_after_the_block() -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    lines_of(LogFormat.JSON)
    assert (root.handlers, root.level) == before


secrets = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=8).filter(
    lambda text: text.strip() == text and text not in REDACTED and REDACTED not in text
)


@given(secrets, st.text(max_size=40), st.text(max_size=40))
def test_a_configured_secret_never_comes_through(secret: str, before: str, after: str) -> None:
    redacted = Redactor([secret])(f"{before}{secret}{after}")
    assert secret not in redacted.replace(REDACTED, "\0")


@given(secrets, st.text(max_size=30), st.sampled_from(["json", "text"]))
def test_nor_through_a_whole_line(secret: str, around: str, log_format: str) -> None:
    redact = Redactor([secret])
    formatter = JsonLines(redact) if log_format == "json" else TextLines(redact)
    record = logged("%s", f"{around} {secret} {around}")
    record.rlm_fields = {"error": f"{secret}", "n": 1}
    line = formatter.format(record)
    assert "\n" not in line
    fixed = formatter.format(logged("%s", f"{around}  {around}"))
    told = json.loads(line)["message"] if log_format == "json" else line
    if secret not in fixed and secret not in "orchestrator.x: error= n=1":
        assert secret not in told.replace(REDACTED, "\0")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {}",
        "{{'authorization': 'Basic {}'}}",
        '{{"Authorization": "Token {}"}}',
        "proxy-authorization={}",
        "(b'x', b'Bearer {}')",
        "OPENAI_API_KEY={} set",
        "api-key: {}",
        '"password": "{}"',
        "https://user:{}@host/path",
        "https://{}@host/path",
        "access_token={}&x=1",
    ],
)
def test_what_is_introduced_as_a_secret_is_taken_out(text: str) -> None:
    redacted = Redactor()(text.format("Zm9vYmFyYmF6cXV4"))
    assert "Zm9v" not in redacted
    assert REDACTED in redacted


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-abcdefgh12345",
        "ghp_" + "a1" * 18,
        "AKIAIOSFODNN7EXAMPLE",
        "hf_" + "x" * 30,
        "rlm_" + "a1-_" * 10 + "xyz",
    ],
)
def test_what_has_a_secret_s_shape_is_taken_out(text: str) -> None:
    assert Redactor()(f"key {text}!") == f"key {REDACTED}!"


def test_a_token_is_taken_out_in_one_reading_of_the_text() -> None:
    """Each "-eyJ" may begin a token, and none of these has its dot: they were read to the end for each of them."""
    assert Redactor()("-eyJaaaaaaaa" * 100_000) == f"-{REDACTED}"
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
    assert Redactor()(f"a-{token}, {token}.") == f"a-{REDACTED}, {REDACTED}."


@pytest.mark.parametrize(
    "text", ["max_tokens=100", "https://host/a@b", "the bearer of news", "task-force-of-many", "rlm_model_cost_usd", ""]
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redactor()(text) in (text, text.replace("of", REDACTED))


def test_a_cut_secret_is_taken_out_as_well() -> None:
    assert Redactor([KEY])(f"it was {KEY[:15]}…") == f"it was {REDACTED}…"


def test_a_short_secret_is_a_word_of_its_own() -> None:
    assert Redactor(["none"])("none of nonesuch") == f"{REDACTED} of nonesuch"


def test_percent_encoded_and_escaped_forms_are_taken_out() -> None:
    redact = Redactor([KEY, "tab\tkey-abc"])
    assert redact("?k=kQ9.unlike%2Fany%2Bshape%3D1") == f"?k={REDACTED}"
    assert redact(r"'tab\tkey-abc'") == f"'{REDACTED}'"


@pytest.mark.parametrize("formatter", [JsonLines(str), TextLines(str)])
def test_no_control_character_comes_through(formatter: logging.Formatter) -> None:
    line = formatter.format(logged("%s", NASTY))
    assert line.isprintable()


@given(st.text())
def test_json_lines_are_json_of_the_same_text(text: str) -> None:
    assert json.loads(JsonLines(str).format(logged("%s", text)))["message"] == text


def test_a_traceback_is_redacted_and_in_its_line() -> None:
    try:
        raise ValueError(f"bad {KEY}")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (ValueError, error, error.__traceback__))
    line = JsonLines(Redactor([KEY])).format(record)
    assert f"ValueError: bad {REDACTED}" in json.loads(line)["traceback"]


def test_the_filter_serves_handlers_of_one_s_own() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactFilter(Redactor([KEY])))
    handler.handle(logged("key %s", KEY))
    assert stream.getvalue() == f"key {REDACTED}\n"


def test_a_stuck_reader_costs_lines_and_not_time() -> None:
    reading, dropped = threading.Event(), []

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            reading.wait()
            return super().write(text)

    stream = Stuck()
    writer = LineWriter(stream, lambda: dropped.append(1), waiting=10)
    for number in range(100):
        writer.handle(logged("%d", number))
    reading.set()
    writer.close()
    written = len(stream.getvalue().splitlines())
    assert written in (10, 11)
    assert written + len(dropped) == 100


def test_a_reader_that_is_gone_is_counted() -> None:
    dropped: list[int] = []
    stream = io.StringIO()
    stream.close()
    writer = LineWriter(stream, lambda: dropped.append(1))
    writer.handle(logged("lost"))
    writer.close()
    assert dropped == [1]


def test_a_wrong_format_string_loses_no_line() -> None:
    assert "%d" in TextLines(str).format(logged("%d", "x"))


def test_sinks_of_nothing_are_none() -> None:
    with telemetry.open(TelemetrySettings(), environ={}) as told:
        assert told.sinks() == ()


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(InvalidInput, match="--log-level"), telemetry.open(TelemetrySettings(log_level="loud")):
        pass


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", Address("127.0.0.1", 9464)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("[::1]:0", Address("::1", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["", "host", "::1:80", "1.2.3.4:", ":80", "x:99999", "x:-1", "x:²"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="--metrics"):
        Address.parse(text)


def test_a_run_that_failed_is_a_warning() -> None:
    stream = io.StringIO()
    with telemetry.open(TelemetrySettings(log_format=LogFormat.JSON), environ={}, stream=stream) as told:
        script = Script(told.sinks())
        script.start()
        script.end(outcome=Outcome.FAILED)
    assert json.loads(stream.getvalue().splitlines()[-1])["level"] == "warning"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "metrics.example.org", "::"])
def test_metrics_are_not_told_beyond_this_machine_unless_that_is_meant(host: str) -> None:
    with pytest.raises(InvalidInput, match="--metrics-in-the-clear"):
        TelemetrySettings(metrics=Address(host, 9464))
    assert TelemetrySettings(metrics=Address(host, 9464), metrics_in_the_clear=True).metrics is not None
    for own in ("127.0.0.1", "::1", "localhost"):
        assert TelemetrySettings(metrics=Address(own, 9464)).metrics is not None
