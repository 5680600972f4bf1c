"""What every sandbox promises, held by the in-process stand-in and by the real containers alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.errors import InvalidInput, LossCause, SandboxLost
from orchestrator.sandbox.context_store import FileContextStore
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.seams import ContextStore, SandboxFactory
from orchestrator.testing.fake_sandbox import FakeSandboxes
from orchestrator.values import (
    Answered,
    Batch,
    CellStatus,
    ContextKind,
    DeathCause,
    Failed,
    FailureReason,
    OutputChunk,
    OutputStream,
    Slot,
)
from tests.docker_fixtures import docker_sandboxes, no_leaks, sandbox_image, sandbox_settings, state_dir

__all__ = ["docker_sandboxes", "no_leaks", "sandbox_image", "sandbox_settings", "state_dir"]


@dataclass(frozen=True, slots=True)
class Place:
    sandboxes: SandboxFactory
    contexts: ContextStore


@pytest.fixture
async def fake_place(tmp_path: Path) -> AsyncIterator[Place]:
    fake = FakeSandboxes(default_time_limit_s=30, grace_s=4)
    yield Place(fake, FileContextStore(tmp_path))
    assert fake.open_now == 0


@pytest.fixture
async def docker_place(docker_sandboxes: DockerSandboxes) -> Place:
    return Place(docker_sandboxes, FileContextStore(docker_sandboxes.context_dir))


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.docker)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


class Model:
    """Answers in capitals, and remembers what it was asked; `bad` fails."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    async def __call__(self, batch: Batch) -> Sequence[Slot]:
        self.batches.append(batch)
        return [
            Failed(FailureReason.REFUSED, "it would not") if q.prompt == "bad" else Answered(q.prompt.upper())
            for q in batch.questions
        ]


class StuckModel:
    """Never answers; tells when it was asked, and when it was told to stop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.stopped = asyncio.Event()

    async def __call__(self, batch: Batch) -> Sequence[Slot]:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
        raise AssertionError


# --- cells ---


@pytest.mark.parametrize("limit_s", [0.0, -1.0])
async def test_a_time_limit_that_is_none_is_refused(place: Place, limit_s: float) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        with pytest.raises(InvalidInput, match="time_limit_s: must be more than 0 s"):
            await sandbox.run("1", time_limit_s=limit_s)
        assert (await sandbox.run("1")).stdout.text == "1\n"


async def test_a_namespace_lives_from_cell_to_cell(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        await sandbox.run("import math\ndef area(r):\n    return math.pi * r * r * factor\nfactor = 2")
        result = await sandbox.run("round(area(1), 3)")
    assert result.status is CellStatus.OK
    assert result.stdout.text == "6.283\n"


async def test_a_failed_cell_keeps_what_ran_before_the_error(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        failed = await sandbox.run("kept = 1\nprint('before')\n1 / 0\nkept = 2")
        after = await sandbox.run("kept")
    assert failed.status is CellStatus.ERROR
    assert failed.stdout.text == "before\n"
    assert failed.error is not None
    assert failed.error.type_name == "ZeroDivisionError"
    assert failed.error.message == "division by zero"
    assert "line 3" in failed.error.traceback
    assert "1 / 0" in failed.error.traceback
    assert after.stdout.text == "1\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [("if 1", "SyntaxError"), ("import sys; sys.exit(3)", "SystemExit"), ("nowhere", "NameError")],
)
async def test_whatever_code_raises_is_data(place: Place, code: str, error: str) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        result = await sandbox.run(code)
        assert (await sandbox.run("'alive'")).stdout.text == "'alive'\n"
    assert result.status is CellStatus.ERROR
    assert result.error is not None
    assert result.error.type_name == error


async def test_nothing_is_run_twice_to_show_the_last_value(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        await sandbox.run("calls = []")
        await sandbox.run("calls.append(1)")
        assert (await sandbox.run("len(calls)")).stdout.text == "1\n"


async def test_streams_are_kept_apart(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        result = await sandbox.run("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (result.stdout.text, result.stderr.text) == ("out\n", "err\n")


async def test_output_is_told_as_it_comes_and_again_in_the_result(place: Place) -> None:
    chunks: list[OutputChunk] = []
    async with place.sandboxes.open(None, None) as sandbox:
        result = await sandbox.run("for i in range(3): print('é' * 10, i, flush=True)", chunks.append)
    assert {chunk.stream for chunk in chunks} == {OutputStream.STDOUT}
    assert "".join(chunk.text for chunk in chunks) == result.stdout.text
    assert result.stdout.text.endswith("2\n")


async def test_a_flood_is_cut_in_the_middle_and_its_true_length_told(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        result = await sandbox.run("print('first ' + 'x' * 1_000_000 + ' last')")
    assert result.stdout.total_bytes == 1_000_012
    assert result.stdout.head.startswith("first xxx")
    assert result.stdout.tail.endswith("xxx last\n")
    kept = len(result.stdout.head) + len(result.stdout.tail)
    assert kept == 2 * 32_768
    assert result.stdout.omitted_bytes == 1_000_012 - kept


async def test_variables_are_told_without_their_contents(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        result = await sandbox.run("names = ['a', 'b']\nsecret = 'x' * 1000\n_private = 1")
    found = {variable.name: variable for variable in result.variables}
    assert set(found) == {"names", "secret"}
    assert found["names"].type_name == "list"
    assert "1,000" in found["secret"].size


# --- context ---


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("grüße", ContextKind.TEXT),
        ("", ContextKind.TEXT),
        (["a", "b"], ContextKind.JSON),
        ([{"role": "user", "content": "hi"}], ContextKind.JSON),
        ({"a": [1, 2.5, None, True]}, ContextKind.JSON),
        (b"\x00\xff", ContextKind.BYTES),
    ],
)
async def test_the_context_comes_back_as_it_was(place: Place, value: object, kind: ContextKind) -> None:
    context = await place.contexts.put(value)
    assert context.info.kind is kind
    async with place.sandboxes.open(context, None) as sandbox:
        result = await sandbox.run(f"context == {value!r}, type(context).__name__")
    assert result.stdout.text == f"(True, {type(value).__name__!r})\n"


async def test_without_a_context_or_questions_the_names_are_not_there(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        for name in ("context", "llm_query", "llm_batch"):
            result = await sandbox.run(name)
            assert result.error is not None
            assert result.error.type_name == "NameError"


# --- questions ---


async def test_one_question(place: Place) -> None:
    model = Model()
    async with place.sandboxes.open(None, model) as sandbox:
        assert (await sandbox.run("llm_query('hello')")).stdout.text == "'HELLO'\n"
    [batch] = model.batches
    assert [question.prompt for question in batch.questions] == ["hello"]


async def test_a_batch_is_one_ask_and_its_answers_are_in_order(place: Place) -> None:
    model = Model()
    async with place.sandboxes.open(None, model) as sandbox:
        result = await sandbox.run("print(llm_batch([f'q{i}' for i in range(30)], max_concurrent=3))")
    assert result.stdout.text == str([f"Q{i}" for i in range(30)]) + "\n"
    [batch] = model.batches
    assert batch.max_concurrent == 3


async def test_a_failed_question_is_a_str_that_can_be_told_apart(place: Place) -> None:
    async with place.sandboxes.open(None, Model()) as sandbox:
        result = await sandbox.run(
            "a, b = llm_batch(['bad', 'good'])\n"
            "print(isinstance(a, str), a.startswith('Error: '), failed(a), a.reason, b, failed(b))"
        )
        strict = await sandbox.run("llm_query('bad', strict=True)")
    assert result.stdout.text == "True True True refused GOOD False\n"
    assert strict.error is not None
    assert strict.error.type_name == "SubcallFailed"


async def test_data_is_handed_along_beside_the_prompt(place: Place) -> None:
    model = Model()
    async with place.sandboxes.open(None, model) as sandbox:
        await sandbox.run(
            "llm_query('t', context='ü'); llm_query('j', context={'a': [1]}); llm_query('b', context=b'\\xff')"
        )
    attached = [batch.questions[0].attachment for batch in model.batches]
    assert [a and (a.kind, a.data.replace(b" ", b"")) for a in attached] == [
        (ContextKind.TEXT, "ü".encode()),
        (ContextKind.JSON, b'{"a":[1]}'),
        (ContextKind.BYTES, b"\xff"),
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("llm_query(1)", "TypeError"),
        ("llm_batch('abc')", "TypeError"),
        ("llm_batch(['a', 2])", "TypeError"),
        ("llm_batch(['a'], max_concurrent=0)", "ValueError"),
    ],
)
async def test_wrong_arguments_raise_in_the_cell_and_ask_nobody(place: Place, code: str, error: str) -> None:
    model = Model()
    async with place.sandboxes.open(None, model) as sandbox:
        result = await sandbox.run(code)
        assert (await sandbox.run("llm_batch([])")).stdout.text == "[]\n"
    assert result.error is not None
    assert result.error.type_name == error
    assert model.batches == []


async def test_the_answerers_own_failure_comes_out_of_run(place: Place) -> None:
    async def broken(batch: Batch) -> Sequence[Slot]:
        raise LookupError("not the code's fault")

    async with place.sandboxes.open(None, broken) as sandbox:
        with pytest.raises(LookupError, match="not the code's fault"):
            await sandbox.run("try:\n    llm_query('x')\nexcept BaseException:\n    pass")
        with pytest.raises(SandboxLost):
            await sandbox.run("1")


# --- final answers ---


@pytest.mark.parametrize(
    ("code", "text", "type_name"),
    [
        ("FINAL('done')", "done", "str"),
        ("FINAL('')", "", "str"),
        ("FINAL(0)", "0", "int"),
        ("FINAL(None)", "None", "NoneType"),
        ("x = [1, 2]\nFINAL_VAR('x')", "[1, 2]", "list"),
        ("answer = {'content': 'so', 'ready': True}", "so", "str"),
    ],
)
async def test_a_final_answer_is_told_by_being_there(place: Place, code: str, text: str, type_name: str) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        before = await sandbox.run("1")
        result = await sandbox.run(code)
    assert before.final is None
    assert result.final is not None
    assert (result.final.text, result.final.type_name, result.final.length) == (text, type_name, len(text))


async def test_a_final_variable_that_is_not_there_is_an_error_that_names_those_that_are(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        await sandbox.run("here = 1")
        result = await sandbox.run("FINAL_VAR('gone')")
    assert result.final is None
    assert result.error is not None
    assert "here" in result.error.message


async def test_an_answer_that_is_not_ready_is_none(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        result = await sandbox.run("answer = {'content': 'so far', 'ready': False}")
    assert result.final is None


# --- time, interrupts, ends ---


async def test_a_cell_over_its_time_is_interrupted_and_keeps_its_state(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        result = await sandbox.run("kept = 7\nwhile True: pass", time_limit_s=0.3)
        after = await sandbox.run("kept")
    assert result.status is CellStatus.TIMED_OUT
    assert after.stdout.text == "7\n"


async def test_code_that_will_not_stop_loses_its_variables_and_says_why(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        await sandbox.run("gone = 1")
        result = await sandbox.run(
            # All its time is spent inside the block: an interrupt outside of it would end the cell.
            "import time\ntry:\n    time.sleep(8)\nexcept KeyboardInterrupt:\n    time.sleep(8)",
            time_limit_s=0.2,
        )
        after = await sandbox.run("gone")
    assert result.status is CellStatus.WORKER_DIED
    assert result.death is not None
    assert result.death.cause is DeathCause.TIMED_OUT
    assert result.state_lost
    assert after.error is not None
    assert after.error.type_name == "NameError"


async def test_waiting_for_an_answer_is_not_running(place: Place) -> None:
    async def slow(batch: Batch) -> Sequence[Slot]:
        loop = asyncio.get_running_loop()
        waited = loop.create_future()
        loop.call_later(1.5, waited.set_result, None)
        await waited
        return [Answered("late")]

    async with place.sandboxes.open(None, slow) as sandbox:
        result = await sandbox.run("llm_query('x')", time_limit_s=0.7)
    assert (result.status, result.stdout.text) == (CellStatus.OK, "'late'\n")
    assert result.seconds < 0.7


async def test_an_interrupt_stops_the_cell_and_its_questions_and_keeps_the_state(place: Place) -> None:
    model = StuckModel()
    async with place.sandboxes.open(None, model) as sandbox:
        running = asyncio.create_task(sandbox.run("kept = 5\nllm_query('x')"))
        await model.asked.wait()
        await sandbox.interrupt()
        assert (await running).status is CellStatus.INTERRUPTED
        assert model.stopped.is_set()
        assert (await sandbox.run("kept")).stdout.text == "5\n"


async def test_an_interrupt_without_a_cell_does_nothing(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        await sandbox.interrupt()
        assert (await sandbox.run("2")).stdout.text == "2\n"


async def test_a_cancelled_run_stops_its_questions_and_gives_the_sandbox_up(place: Place) -> None:
    model = StuckModel()
    async with place.sandboxes.open(None, model) as sandbox:
        running = asyncio.create_task(sandbox.run("llm_query('x')"))
        await model.asked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert model.stopped.is_set()
        with pytest.raises(SandboxLost) as caught:
            await sandbox.run("1")
    assert caught.value.cause is LossCause.CLOSED


async def test_a_sandbox_ends_with_its_block(place: Place) -> None:
    async with place.sandboxes.open(None, None) as sandbox:
        pass
    with pytest.raises(SandboxLost) as caught:
        await sandbox.run("1")
    assert caught.value.cause is LossCause.CLOSED


async def test_two_sandboxes_share_nothing(place: Place) -> None:
    async with place.sandboxes.open(None, Model()) as one, place.sandboxes.open(None, Model()) as two:
        assert one.name != two.name
        loud, quiet = await asyncio.gather(
            one.run("mine = 1\nfor i in range(50): print('one', llm_query('a'))"),
            two.run("for i in range(50): print('two', llm_query('b'))"),
        )
        other = await two.run("mine")
    assert loud.stdout.text == "one A\n" * 50
    assert quiet.stdout.text == "two B\n" * 50
    assert other.error is not None
