"""Files, frames and messages that others wrote: any bytes end in a value or in the one exception that says so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InvalidInput, RunNotReplayable
from orchestrator.folds.journal import JournalReader, JournalWriter
from orchestrator.json_shape import shape_of
from orchestrator.protocol.rlm.v1 import run_pb2
from orchestrator.rlm.parsing import answer_in, parse_reply
from orchestrator.sandbox.json_stream import pieces_of, type_name_of
from orchestrator.server.tokens import Tokens
from orchestrator.wire.settings import NAMES, chosen, settings_message
from tests.unit.guest_modules import guest_frames
from tests.unit.sample_runs import whole_run

REPOSITORY = Path(__file__).resolve().parents[2]
FUZZ_TARGETS = tuple(sorted(path.stem for path in (REPOSITORY / "tests" / "fuzz").glob("fuzz_*.py")))
_FUZZ_RUNS, _FUZZ_S = 5_000, 30  # executions, or as many as a busy machine has time for: `make fuzz` goes on for longer

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
        | st.tuples(inner)
    ),
    max_leaves=20,
)
strict = settings(max_examples=200, deadline=None)


def _mutated(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """With pieces replaced: near to what is right, where random bytes never come."""
    for at, length, new in edits:
        start = at % (len(data) + 1)
        data = data[:start] + new + data[start + length :]
    return data


edits = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4)


def read_journal(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        refusal = ""
        try:
            last = 0
            for record in JournalReader(Path(file.name)):
                assert record.seq > last
                last = record.seq
        except RunNotReplayable as error:
            refusal = str(error)
    assert not refusal or file.name in refusal


@cache
def _journal() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.jsonl")
        with JournalWriter(path, package="0") as writer:
            whole_run(writer)
        return path.read_bytes()


@given(st.binary(max_size=300))
@strict
def test_a_journal_of_any_bytes(data: bytes) -> None:
    read_journal(data)
    read_journal(b'{"format":"rlm-journal","version":1,"package":"0"}\n' + data)


@given(edits)
@strict
def test_a_journal_that_someone_changed(edits: list[tuple[int, int, bytes]]) -> None:
    read_journal(_mutated(_journal(), edits))


@given(st.integers(1, 100_000))
@settings(max_examples=20, deadline=None)
def test_a_journal_of_nested_JSON(depth: int) -> None:
    for opening in (b"[", b'{"a":'):
        read_journal(b'{"format":"rlm-journal","version":1,"package":"0"}\n' + opening * depth + b"\n")


def read_frames(data: bytes, cut: int = 7) -> None:
    """As the agent reads what its worker wrote, and the worker what the agent did: piece by piece."""
    decoder = guest_frames.FrameDecoder()
    try:
        for start in range(0, len(data), cut):
            for message, raw in decoder.feed(data[start : start + cut]):
                assert isinstance(message["op"], str)
                sizes = message.get("sizes")
                if isinstance(sizes, list):
                    assert b"".join(guest_frames.split(raw, sizes)) == raw
    except guest_frames.FrameError:
        pass


@given(st.binary(max_size=300), st.integers(1, 50))
@strict
def test_frames_of_any_bytes(data: bytes, cut: int) -> None:
    read_frames(data, cut)


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(1, 50))
@strict
def test_frames_with_a_true_header_around_any_bytes(head: bytes, raw: bytes, cut: int) -> None:
    read_frames(guest_frames.HEADER.pack(len(head), len(raw)) + head + raw, cut)


@given(st.dictionaries(st.text(max_size=8), values, max_size=4), st.lists(scalars, max_size=4), st.binary(max_size=50))
@strict
def test_frames_of_any_message(message: dict[str, Any], sizes: list[object], raw: bytes) -> None:
    try:
        head = json.dumps({**message, "op": "x", "sizes": sizes}).encode()
    except (TypeError, UnicodeEncodeError):
        return  # bytes: no sender can write them
    read_frames(guest_frames.HEADER.pack(len(head), len(raw)) + head + raw)


@given(st.integers(1, 100_000), st.sampled_from([b"[", b'{"op":', b'{"op":"x","y":[']))
@settings(max_examples=20, deadline=None)
def test_frames_of_nested_JSON(depth: int, opening: bytes) -> None:
    head = opening * depth
    read_frames(guest_frames.HEADER.pack(len(head), 0) + head, 1 << 16)


@given(st.dictionaries(st.text(max_size=8), scalars, max_size=4), st.lists(st.binary(max_size=50), max_size=4))
@strict
def test_a_frame_is_read_as_it_was_written(message: dict[str, Any], data: list[bytes]) -> None:
    message = {name: value for name, value in message.items() if value == value} | {"op": "x"}
    ((found, raw),) = guest_frames.FrameDecoder().feed(guest_frames.encode(message, *data))
    assert found == message
    assert guest_frames.split(raw, [len(piece) for piece in data]) == data


def shape(data: bytes) -> None:
    try:
        assert shape_of(data).length >= 0
    except InvalidInput as error:
        refusal = str(error)
    else:
        return
    assert "context" in refusal


@given(st.binary(max_size=200))
@strict
def test_the_shape_of_any_bytes(data: bytes) -> None:
    shape(data)


@given(values, edits)
@strict
def test_the_shape_of_a_document_that_someone_changed(value: object, edits: list[tuple[int, int, bytes]]) -> None:
    try:
        document = json.dumps(value).encode()
    except (TypeError, ValueError):
        return
    shape(_mutated(document, edits))


@given(st.integers(1, 200_000), st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b'["', b'"]')]))
@settings(max_examples=20, deadline=None)
def test_the_shape_of_a_nested_document(depth: int, brackets: tuple[bytes, bytes]) -> None:
    shape(brackets[0] * depth + b"1" + brackets[1] * depth)


@given(values)
@strict
def test_a_context_is_written_as_what_it_is_or_refused(value: object) -> None:
    try:
        document = b"".join(pieces_of(value))
    except InvalidInput:
        return
    assert json.loads(document) == json.loads(json.dumps(value))
    found = shape_of(document)
    if isinstance(value, list | tuple | dict):
        assert found.length == len(value)
        # An empty list of nothing, and an item that is empty, have no telling first character.
        assert found.type_name == ("list" if isinstance(value, tuple) and not value else type_name_of(value))


def read_tokens(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        try:
            assert Tokens.load(Path(file.name)).principal_of("rlm_a guess") is None
        except InvalidInput as error:
            refusal = str(error)
        else:
            return
    assert file.name in refusal


_ENTRY = (
    f'[[token]]\nname = "alice"\nsha256 = "{"0" * 64}"\nmax_runs = 4\nmax_cost_usd = 20.0\nadmin = false\n'.encode()
)


@given(st.binary(max_size=200))
@strict
def test_a_tokens_file_of_any_bytes(data: bytes) -> None:
    read_tokens(data)


@given(edits)
@strict
def test_a_tokens_file_that_someone_changed(edits: list[tuple[int, int, bytes]]) -> None:
    read_tokens(_mutated(_ENTRY, edits))


@pytest.mark.parametrize("nested", ["a = " + "[" * 5_000, "a." * 5_000 + "b = 1", "[" + "a." * 5_000 + "b]"])
def test_a_tokens_file_that_is_nested(nested: str) -> None:
    read_tokens(nested.encode())


def read_settings(data: bytes) -> None:
    try:
        found = chosen(run_pb2.RunSettings.FromString(data))
    except (DecodeError, InvalidInput):
        return
    assert found.keys() <= NAMES


@given(st.binary(max_size=300))
@strict
def test_run_settings_of_any_bytes(data: bytes) -> None:
    read_settings(data)


@given(edits)
@strict
def test_run_settings_that_someone_changed(edits: list[tuple[int, int, bytes]]) -> None:
    message = settings_message(
        {"model": "m", "models": ("a", "b"), "max_depth": 2, "cell_timeout_s": 2.5, "model_options": {"a": [1]}}
    )
    read_settings(_mutated(message.SerializeToString(), edits))


@given(st.text(max_size=60) | st.integers(1, 100_000).map(lambda depth: "[" * depth) | values.map(repr))
@strict
def test_model_options_of_any_text(text: str) -> None:
    try:
        message = run_pb2.RunSettings(model_options_json=text)
    except (UnicodeEncodeError, ValueError):
        return  # a lone surrogate: no message can carry it
    try:
        assert chosen(message)["model_options"] == msgspec.json.decode(text)
    except InvalidInput as error:
        refusal = str(error)
    else:
        return
    assert "model_options_json" in refusal


def read_reply(data: bytes) -> None:
    """Any text that a model may send; what runs is a part of it."""
    text = data.decode("utf-8", "replace")
    for block in parse_reply(text).blocks:
        assert all(line.strip() in text for line in block.code.splitlines())
    assert isinstance(answer_in(text), str)


MARKS = ("```", "````", "~~~", "repl", "python", "\n", " ", "FINAL(", "FINAL_VAR(", ")", '"', "'''", "\\")
FENCED = st.lists(st.sampled_from([*MARKS, "<think>", "</think>", "x = 1", "\t", "\r", "> "]), max_size=40)


@given(FENCED)
@strict
def test_a_reply_of_any_fences(pieces: list[str]) -> None:
    read_reply("".join(pieces).encode())


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install -e .[fuzz]")
@pytest.mark.parametrize("target", FUZZ_TARGETS)
def test_fuzzing_finds_nothing_at_once(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"tests.fuzz.{target}", f"-runs={_FUZZ_RUNS}", "-max_len=1024"]
    command.append(f"-max_total_time={_FUZZ_S}")
    fuzzed = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert fuzzed.returncode == 0, fuzzed.stderr[-4000:]
    assert re.search(r"^Done [1-9]\d* runs", fuzzed.stderr, re.MULTILINE), fuzzed.stderr[-4000:]


@pytest.mark.parametrize(
    "unit",
    [
        "FINAL(\n", 'FINAL("\n', "FINAL('''\n", "FINAL((\n)", "```repl\n", "```repl\n'''\n```\n", "```\n", "`",
        "~~~x\n", '```repl\n"""\n', "``` ", "x ```", " ", "\t", "(", "\\", "'", '"""', "- ", "FINAL(x)  \n a",
        "```x\ny\n```\n",
    ],
)  # fmt: skip
def test_a_reply_is_read_in_a_time_that_its_length_bounds(unit: str) -> None:
    # Quadratic reading of these takes minutes: the suite's own timeout is the limit, not a measured time.
    text = unit * (100_000 // len(unit))
    parse_reply(text)
    parse_reply("```repl\n" + text)
