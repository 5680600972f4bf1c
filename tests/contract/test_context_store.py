"""What a context store promises: a value comes to rest once, is described without being loaded, or is refused."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InvalidInput
from orchestrator.events import EventLog
from orchestrator.json_shape import shape_of
from orchestrator.rlm.leaf import Leaf
from orchestrator.sandbox import context_store
from orchestrator.sandbox.context_store import FileContextStore
from orchestrator.testing.fake_model import FakeChatModel
from orchestrator.values import Attachment, ContextKind, Prompt


@pytest.fixture
def store(tmp_path: Path) -> FileContextStore:
    return FileContextStore(tmp_path / "c")


def files_of(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "c")


async def test_text_is_told_by_its_length_and_both_ends(store: FileContextStore) -> None:
    text = "".join(f"{i:05d}é" for i in range(2_000))
    context = await store.put(text)
    assert context.path.read_text("utf-8") == text
    info = context.info
    assert (info.kind, info.type_name, info.length, info.unit) == (ContextKind.TEXT, "str", 12_000, "characters")
    assert info.size_bytes == len(text.encode())
    assert (info.head, info.tail) == (text[:300], text[-300:])


@pytest.mark.parametrize("text", ["", "short", "é" * 100])
async def test_a_short_one_is_all_head(store: FileContextStore, text: str) -> None:
    info = (await store.put(text)).info
    assert (info.head, info.tail) == (text, "")


@pytest.mark.parametrize(
    ("value", "type_name", "length", "unit"),
    [
        (["a", "b"], "list[str]", 2, "items"),
        ([{"role": "user", "content": "x"}], "list[dict]", 1, "items"),
        ([1, "a"], "list", 2, "items"),
        ([], "list", 0, "items"),
        (("a",), "list[str]", 1, "items"),
        ({"a": 1, "b": [2]}, "dict", 2, "keys"),
        ({}, "dict", 0, "keys"),
        (5, "int", 1, "characters"),
        (None, "NoneType", 4, "characters"),
    ],
)
async def test_json_is_told_by_what_the_code_will_see(
    store: FileContextStore, value: object, type_name: str, length: int, unit: str
) -> None:
    context = await store.put(value)
    assert json.loads(context.path.read_bytes()) == (list(value) if isinstance(value, tuple) else value)
    info = context.info
    assert (info.kind, info.type_name, info.length, info.unit) == (ContextKind.JSON, type_name, length, unit)
    assert info.head == context.path.read_text()


async def test_bytes_are_bytes(store: FileContextStore) -> None:
    context = await store.put(b"\x00\xff" * 1_000)
    assert context.path.read_bytes() == b"\x00\xff" * 1_000
    assert (context.info.kind, context.info.length, context.info.unit) == (ContextKind.BYTES, 2_000, "bytes")
    assert context.info.head.startswith("b'\\x00\\xff")


async def test_a_file_is_copied_and_its_owner_may_change_it(store: FileContextStore, tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("größe\n" * 1_000_000)
    context = await store.put(source)
    source.write_text("changed")
    assert context.path.read_text("utf-8") == "größe\n" * 1_000_000
    assert (context.info.kind, context.info.length) == (ContextKind.TEXT, 6_000_000)
    assert context.info.tail == ("größe\n" * 50)


@pytest.mark.parametrize("data", [b"\xff\xfe binary", b"text\x00with nul", b"caf\xc3"])
async def test_a_file_that_is_no_text_is_bytes(store: FileContextStore, tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(data)
    context = await store.put(source)
    assert (context.info.kind, context.info.length) == (ContextKind.BYTES, len(data))


async def test_a_character_across_the_sniffed_part_is_still_text(store: FileContextStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * (1024 * 1024 - 1) + "é".encode() + b"y")
    assert (await store.put(source)).info.length == 1024 * 1024 + 1


def loop() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


def deep() -> object:
    value: object = 1
    for _ in range(1_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, {"a": float("nan")}], r"context\[1\]\['a'\].*nan"),
        ({"x": float("inf")}, r"context\['x'\].*inf"),
        ([{1: "a"}], r"context\[0\].*key of type int"),
        ({None: 1}, "key of type NoneType"),
        ([set()], r"context\[0\].*type set"),
        ([b"x"], r"context\[0\].*type bytes"),
        (object(), "type object"),
        (loop(), "holds itself"),
        (deep(), "nested deeper than 200"),
        ("a\ud800", "surrogate pair at character 1"),
        (["ok", "\udfff"], r"context\[1\].*surrogate"),
        (Path("/does/not/exist"), "/does/not/exist.*No such file"),
        (Path("/dev"), "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ],
)
async def test_what_cannot_come_back_as_it_was_is_refused_by_place(
    store: FileContextStore, tmp_path: Path, value: object, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        await store.put(value)
    assert files_of(tmp_path) == []


async def test_a_pipe_does_not_hang_us(store: FileContextStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="not a regular file"):
        await store.put(tmp_path / "pipe")


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileContextStore(tmp_path / "c")

    def full(self: object, piece: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(context_store._Writer, "__call__", full)
    with pytest.raises(InvalidInput, match="does not fit on the disk"):
        await store.put("text")
    assert files_of(tmp_path) == []


async def test_cancelled_writing_leaves_nothing(store: FileContextStore, tmp_path: Path) -> None:
    writing = asyncio.create_task(store.put("x" * 100_000_000))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert files_of(tmp_path) == []


async def test_dropping_twice_is_fine(store: FileContextStore, tmp_path: Path) -> None:
    context = await store.put("x")
    await store.drop(context)
    await store.drop(context)
    assert files_of(tmp_path) == []


async def test_reading_back_has_a_limit(store: FileContextStore) -> None:
    context = await store.put("é" * 10)
    assert await store.read_text(context, 20) == "é" * 10
    with pytest.raises(InvalidInput, match="20 bytes; at most 19"):
        await store.read_text(context, 19)


@pytest.mark.parametrize("data", [b"\x89PNG\xff\xfe\x00", b"caf\xc3", b"text\x00with nul"])
async def test_bytes_that_are_no_text_are_refused_to_a_plain_model(store: FileContextStore, data: bytes) -> None:
    context = await store.put_attachment(Attachment(ContextKind.BYTES, data))
    chat = FakeChatModel(lambda messages: "never")
    with pytest.raises(InvalidInput, match="bytes that are no text"):
        await Leaf(chat, store).completion(Prompt("What is it?", context), EventLog().root())
    assert chat.calls == []


async def test_bytes_that_are_text_can_be_read(store: FileContextStore) -> None:
    context = await store.put_attachment(Attachment(ContextKind.BYTES, "größe".encode()))
    assert await store.read_text(context, 100) == "größe"


@pytest.mark.parametrize(
    ("attachment", "type_name", "length"),
    [
        (Attachment(ContextKind.TEXT, "é".encode()), "str", 1),
        (Attachment(ContextKind.JSON, b' [ {"a": [1, 2]}, {} ] '), "list[dict]", 2),
        (Attachment(ContextKind.JSON, b'["a,b", "c]"]'), "list[str]", 2),
        (Attachment(ContextKind.JSON, b'{"a": {"b": 1, "c": 2}, "d": "}"}'), "dict", 2),
        (Attachment(ContextKind.BYTES, b"\xff"), "bytes", 1),
    ],
)
async def test_an_attachment_is_described_without_being_built(
    store: FileContextStore, attachment: Attachment, type_name: str, length: int
) -> None:
    context = await store.put_attachment(attachment)
    assert context.path.read_bytes() == attachment.data
    assert (context.info.type_name, context.info.length) == (type_name, length)


@pytest.mark.parametrize(
    "attachment",
    [
        Attachment(ContextKind.TEXT, b"\xff"),
        Attachment(ContextKind.JSON, b"[1,"),
        Attachment(ContextKind.JSON, b"[NaN]"),
        Attachment(ContextKind.JSON, b'"\xff"'),
        Attachment(ContextKind.JSON, b"[" * 100_000 + b"]" * 100_000),
        Attachment(ContextKind.JSON, b""),
    ],
)
async def test_an_attachment_that_is_not_what_it_says_is_refused(
    store: FileContextStore, tmp_path: Path, attachment: Attachment
) -> None:
    with pytest.raises(InvalidInput, match="context"):
        await store.put_attachment(attachment)
    assert files_of(tmp_path) == []


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None)
@given(value=documents, indent=st.none() | st.integers(0, 2))
def test_the_shape_of_any_document_is_that_of_its_value(value: object, indent: int | None) -> None:
    shape = shape_of(json.dumps(value, indent=indent).encode())
    match value:
        case list():
            assert shape.length == len(value)
            assert shape.type_name.startswith("list")
            assert (shape.type_name == "list[str]") == (bool(value) and all(type(item) is str for item in value))
            assert (shape.type_name == "list[dict]") == (bool(value) and all(type(item) is dict for item in value))
        case dict():
            assert (shape.type_name, shape.length) == ("dict", len(value))
        case _:
            assert shape.type_name == type(value).__name__


def test_counting_gives_up_on_a_document_of_too_many_pieces() -> None:
    document = b"[" + b"1," * 300_000 + b"1]"
    assert (shape_of(document).unit, shape_of(document).length) == ("bytes", len(document))
