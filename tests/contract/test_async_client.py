"""The documented client: order, error slots, deduplication, and use with or without a running loop."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import BudgetExceeded, InvalidInput, ModelFailed
from orchestrator.llm import openai_sdk
from orchestrator.llm.async_client import AsyncOpenAIClient, SlotText
from orchestrator.testing.scripted import (
    ChatRequest,
    Hang,
    Outcome,
    Policy,
    Reply,
    ScriptedServerThread,
    client_error,
    context_length_exceeded,
    rendezvous,
)
from orchestrator.values import FailureReason, Limits

Connect = Callable[..., AsyncOpenAIClient]


def answering(request: ChatRequest) -> Outcome:
    match request.last_user:
        case "fail":
            return client_error(400)
        case "long":
            return context_length_exceeded()
        case "refuse":
            return Reply(None, refusal="I will not")
        case "lie":
            return Reply("Error: just kidding")
        case text:
            return Reply(f"re: {text}")


@pytest.fixture
def served() -> Iterator[ScriptedServerThread]:
    with ScriptedServerThread({"model": answering}) as server:
        yield server


@pytest.fixture
def client(served: ScriptedServerThread) -> Iterator[AsyncOpenAIClient]:
    with AsyncOpenAIClient("key", "model", served.base_url) as client:
        yield client


async def test_completion_takes_a_prompt_or_messages(client: AsyncOpenAIClient) -> None:
    assert await client.completion("hello") == "re: hello"
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert await client.completion(chat) == "re: hi"
    assert await client.completion("hello there", max_tokens=2) == "re: hell"
    assert client.spent.calls == 3


async def test_a_batch_keeps_its_order_and_puts_failures_in_their_slots(client: AsyncOpenAIClient) -> None:
    slots = await client.batch_completion(["a", "fail", "lie", "refuse", "long", "b"])
    reasons = [slot.reason for slot in slots]
    assert reasons == [None, FailureReason.MODEL, None, FailureReason.REFUSED, FailureReason.TOO_LONG, None]
    assert (slots[0], slots[2], slots[5]) == ("re: a", "Error: just kidding", "re: b")
    assert all(slots[index].startswith("Error: ") for index in (1, 2, 3, 4))


async def test_strict_raises_instead(client: AsyncOpenAIClient) -> None:
    with pytest.raises(ModelFailed):
        await client.batch_completion(["a", "fail", "b"], strict=True)


async def test_duplicates_are_asked_once_and_answered_everywhere(
    client: AsyncOpenAIClient, served: ScriptedServerThread
) -> None:
    assert await client.batch_completion(["a", "b", "a", "a"], max_concurrent=1) == ["re: a", "re: b", "re: a", "re: a"]
    assert len(served.requests) == 2


async def test_an_empty_batch_is_an_empty_list(client: AsyncOpenAIClient, served: ScriptedServerThread) -> None:
    assert await client.batch_completion([]) == []
    assert not served.requests


@pytest.mark.parametrize(
    ("prompts", "max_concurrent", "error"),
    [
        ("one", 10, TypeError),
        ([1], 10, TypeError),
        ([None], 10, TypeError),
        ([[{"role": "tool", "content": "x"}]], 10, TypeError),
        (["a"], 0, ValueError),
        (["a"], -1, ValueError),
        (["a"], 1.5, TypeError),
        (["a"], True, TypeError),
    ],
)
def test_wrong_arguments_are_refused(
    client: AsyncOpenAIClient, prompts: list[str], max_concurrent: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"prompts|max_concurrent"):
        client.batch_completion_sync(prompts, max_concurrent)


def test_the_sync_batch_works_without_a_running_loop(client: AsyncOpenAIClient) -> None:
    assert client.batch_completion_sync(["a", "b"]) == ["re: a", "re: b"]
    assert client.completion_sync("c") == "re: c"


async def test_the_sync_batch_works_with_a_running_loop(client: AsyncOpenAIClient) -> None:
    assert client.batch_completion_sync(["a", "b"]) == ["re: a", "re: b"]


def test_one_client_serves_several_loops_and_threads(client: AsyncOpenAIClient) -> None:
    answers: dict[int, list[SlotText]] = {}

    def use(number: int) -> None:
        answers[number] = asyncio.run(client.batch_completion([f"{number}a", f"{number}b"]))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [f"re: {number}a", f"re: {number}b"] for number in range(4)}


async def test_the_sdk_client_is_built_once_for_all_batches(
    served: ScriptedServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = 0
    real = openai_sdk.new_sdk_client

    def counting(*args: object) -> object:
        nonlocal built
        built += 1
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(openai_sdk, "new_sdk_client", counting)
    async with AsyncOpenAIClient("key", "model", served.base_url) as client:
        await client.batch_completion([str(number) for number in range(20)])
        await client.batch_completion([str(number) for number in range(20, 30)])
    assert built == 1


def scripted(policy: Policy) -> ScriptedServerThread:
    return ScriptedServerThread({"model": policy})


async def test_a_batch_runs_at_the_same_time_up_to_its_limit() -> None:
    # The server answers only once five requests are there together: less concurrency would never end.
    with scripted(rendezvous(5, lambda request: Reply("ok"))) as server:
        async with asyncio.timeout(60), AsyncOpenAIClient("key", "model", server.base_url) as client:
            await client.batch_completion([str(number) for number in range(15)], max_concurrent=5)
        assert server.max_in_flight == 5


async def test_two_batches_share_the_clients_own_limit(served: ScriptedServerThread) -> None:
    async with AsyncOpenAIClient("key", "model", served.base_url, max_concurrent=3) as client:
        await asyncio.gather(
            *(client.batch_completion([f"{batch} {number}" for number in range(10)]) for batch in range(3))
        )
    assert served.max_in_flight <= 3


async def test_limits_hold_during_a_batch(served: ScriptedServerThread) -> None:
    async with AsyncOpenAIClient("key", "model", served.base_url, limits=Limits(max_calls=3)) as client:
        slots = await client.batch_completion([str(number) for number in range(10)])
        with pytest.raises(BudgetExceeded):
            await client.completion("one more")
    assert [slot.reason for slot in slots].count(FailureReason.BUDGET) == 7
    assert len(served.requests) == 3


async def test_progress_is_told_up_to_the_end(client: AsyncOpenAIClient) -> None:
    told: list[tuple[int, int]] = []
    await client.batch_completion(["a", "b", "a", "fail"], on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_progress_function_that_ends_the_program_ends_the_batch(served: ScriptedServerThread) -> None:
    with AsyncOpenAIClient("key", "model", served.base_url) as client:
        with pytest.raises(SystemExit, match="enough"):
            client.batch_completion_sync(["a", "b"], on_progress=lambda done, total: sys.exit("enough"))
        assert client.completion_sync("still here")


async def test_cancelling_a_batch_cancels_its_requests() -> None:
    with scripted(lambda request: Hang()) as server:
        async with asyncio.timeout(60), AsyncOpenAIClient("key", "model", server.base_url) as client:
            batch = asyncio.create_task(client.batch_completion(["a", "b"]))
            await asyncio.to_thread(server.wait_for, lambda log: log.in_flight == 2)
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch
            await asyncio.to_thread(server.wait_for, lambda log: log.in_flight == 0)
            assert client.spent.estimated_calls == 2


def test_closing_gives_up_what_is_in_flight_and_ends_the_thread(served: ScriptedServerThread) -> None:
    before = threading.active_count()
    client = AsyncOpenAIClient("key", "model", served.base_url)
    client.close()
    client.close()
    assert threading.active_count() == before
    with pytest.raises(InvalidInput, match="closed"):
        client.completion_sync("hello")


def test_a_missing_key_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY"):
        AsyncOpenAIClient()


async def test_key_and_address_come_from_the_environment(
    served: ScriptedServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
    async with AsyncOpenAIClient(model="model") as client:
        assert await client.completion("hello") == "re: hello"
    assert served.requests[0].headers["authorization"] == "Bearer from-env"


async def test_key_and_address_come_from_a_dotenv_file_too(
    served: ScriptedServerThread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY=from-file\nOPENAI_BASE_URL={served.base_url}\n")
    monkeypatch.chdir(tmp_path)
    async with AsyncOpenAIClient(model="model") as client:
        assert await client.completion("hello") == "re: hello"
    assert served.requests[-1].headers["authorization"] == "Bearer from-file"


def test_a_slot_survives_copying_and_pickling() -> None:
    slot = SlotText("Error: no", FailureReason.MODEL)
    for twin in (copy.copy(slot), copy.deepcopy(slot), pickle.loads(pickle.dumps(slot))):
        assert (twin, twin.failed, twin.reason) == ("Error: no", True, FailureReason.MODEL)
    assert not SlotText("fine").failed
