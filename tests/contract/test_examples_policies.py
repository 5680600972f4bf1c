"""The examples' scripted models write code that really finds the answer, which changes with the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples import batch_vs_sequential, depths, needle
from examples.models import model_settings
from orchestrator.testing.scripted import constant
from tests.contract.scripted_tree import run


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_needle_is_found_wherever_and_whatever_it_is(seed: int, tmp_path: Path) -> None:
    text, word = needle.haystack(2_000, seed)
    assert text.count("\n") == 1_999
    told = await run(needle.policies(), text, tmp_path)
    assert told.answer == word
    # The code narrowed it down: no model saw more than the decoys and the needle.
    assert 0 < told.calls[1] <= needle.DECOYS + 1


async def test_without_a_needle_nothing_is_claimed(tmp_path: Path) -> None:
    text, word = needle.haystack(500, 1)
    told = await run(needle.policies(), text.replace(f"only the {word} will ever open", "nothing opens"), tmp_path)
    assert told.answer == "unknown"


async def test_both_ways_ask_all_their_questions(tmp_path: Path) -> None:
    told = await run(batch_vs_sequential.policies(leaf_seconds=0), "", tmp_path)
    assert set(json.loads(told.answer)) == {"sequential", "batch"}
    assert told.calls == {0: 1, 1: 2 * batch_vs_sequential.CALLS}


@pytest.mark.parametrize(("depth", "sandboxes"), [(2, 1 + 3), (3, 1 + 3 + 3 * 4)])
async def test_the_ships_are_counted_alike_at_either_depth(depth: int, sandboxes: int, tmp_path: Path) -> None:
    context, lost = depths.chronicle()
    told = await run(depths.policies(depth), context, tmp_path)
    assert (told.answer, told.sandboxes) == (str(lost), sandboxes)
    context["1601"]["month 1"].append("At last four ships went down.")
    assert (await run(depths.policies(depth), context, tmp_path)).answer == str(lost + 4)


def test_models_are_scripted_without_a_key_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    with model_settings({"one": constant(""), "two": constant("")}) as settings:
        assert settings["models"] == ("one", "two")
        assert settings["base_url"].startswith("http://127.0.0.1:")
    assert "SCRIPTED" in capsys.readouterr().err


def test_models_are_the_real_ones_with_a_key_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    with model_settings({"one": constant("")}) as settings:
        assert settings == {}
    assert "costs money" in capsys.readouterr().err
