"""Sessions: further queries in the same variables, until they are closed, lost, or idle for too long."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import Busy, InvalidInput, ModelFailed, ModelFailure, NotFound, QuotaExceeded
from orchestrator.events import RlmStarted, SandboxEnded, SandboxStarted
from orchestrator.hosting.orders import ContextHeader, Uploaded
from orchestrator.hosting.principals import Principal, Quotas
from orchestrator.hosting.settings import HostingSettings
from orchestrator.values import Attachment, ContextKind
from orchestrator.views import ContextView, Missed, RunState
from tests.unit.hosting_world import ADMIN, ALICE, BOB, House, house, until
from tests.unit.rlm_world import code, replies

TEXT = Attachment(ContextKind.TEXT, b"the whole text")
FIRST = code("found = len(context)", "FINAL(found)")
SECOND = code("FINAL(found + 1)")


async def _pieces(data: bytes, size: int = 5) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def upload(desk: House, data: bytes, kind: ContextKind = ContextKind.TEXT) -> ContextView:
    header = ContextHeader(kind, len(data), hashlib.sha256(data).digest())
    return await desk.runs.upload(header, _pieces(data), principal=ALICE)


async def test_a_second_query_finds_the_variables_and_the_conversation(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST, SECOND)) as desk:
        first = await desk.ask("How long?", context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        assert (session.run_id, session.busy, session.turns) == (first.run_id, False, 1)
        assert session.expires_at == desk.clock.time + 60
        desk.clock.advance(50)
        second = await desk.ask("And one more?", session_id=session.session_id)
        assert (first.answer, second.answer) == ("14", "15")
        assert first.run_id != second.run_id
        assert second.session_id == session.session_id
        told = "\n".join(message.content for message in desk.chat.calls[-1].messages)
        assert "How long?" in told
        assert "And one more?" in told
        assert (second.spent.calls, second.spent.sandboxes, desk.fakes.opened) == (1, 0, 1)
        (session,) = desk.runs.sessions(principal=ALICE)
        assert (session.turns, session.expires_at) == (2, desk.clock.time + 60)
        for run in (first, second):
            events = [item.event for item in await desk.seen(run) if not isinstance(item, Missed)]
            kinds = [type(event) for event in events]
            assert kinds.count(RlmStarted) == kinds.count(SandboxStarted) == kinds.count(SandboxEnded) == 1


async def test_an_idle_session_expires_and_says_so_to_its_owner_only(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST)) as desk:
        await desk.ask(context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        desk.clock.advance(60)
        await until(lambda: desk.fakes.open_now == 0)
        assert desk.runs.sessions(principal=ALICE) == ()
        with pytest.raises(NotFound, match="idle for 60 s"):
            await desk.start("more?", session_id=session.session_id)
        with pytest.raises(NotFound) as caught:
            await desk.start("more?", session_id=session.session_id, principal=BOB)
        assert "idle" not in str(caught.value)


async def test_a_session_whose_sandbox_is_lost_is_closed_and_says_how(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST)) as desk:
        await desk.ask(context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        desk.fakes.live[0].lose(detail="the container ended")
        await until(lambda: desk.runs.sessions(principal=ALICE) == () and desk.fakes.open_now == 0)
        with pytest.raises(NotFound, match="the container ended"):
            await desk.start("more?", session_id=session.session_id)


async def test_a_failed_turn_leaves_the_session_for_another_try(tmp_path: Path) -> None:
    failure = ModelFailed(ModelFailure.SERVER, "fake", "status 500")
    async with house(tmp_path, replies(FIRST, failure, SECOND)) as desk:
        await desk.ask(context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        assert (await desk.ask("more?", session_id=session.session_id)).state is RunState.FAILED
        assert (await desk.ask("again?", session_id=session.session_id)).answer == "15"


async def test_one_turn_at_a_time_and_closing_ends_it(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST, SECOND)) as desk:
        await desk.ask(context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        desk.chat.gate.clear()
        run = await desk.start("more?", session_id=session.session_id)
        await desk.chat.until(lambda: desk.chat.in_flight == 1)
        assert desk.runs.sessions(principal=ALICE)[0].expires_at is None
        desk.clock.advance(1000)  # a turn in progress does not count as idle
        with pytest.raises(Busy, match=run.run_id):
            await desk.start("more still?", session_id=session.session_id)
        with pytest.raises(NotFound):
            await desk.runs.close_session(session.session_id, principal=BOB)
        await desk.runs.close_session(session.session_id, principal=ALICE)
        assert desk.fakes.open_now == 0
        stopped = await desk.runs.get(run.run_id, principal=ALICE)
        assert stopped.state is RunState.CANCELLED
        assert stopped.problem is not None
        assert "session was closed" in stopped.problem.message
        with pytest.raises(NotFound, match="closed"):
            await desk.runs.close_session(session.session_id, principal=ALICE)


async def test_no_run_begins_in_a_session_that_is_being_closed(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST, SECOND, SECOND, SECOND)) as desk:
        await desk.ask("How long?", context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        desk.chat.gate.clear()
        running = await desk.start("And one more?", session_id=session.session_id)
        await desk.chat.until(lambda: desk.chat.in_flight == 1)
        closing = asyncio.create_task(desk.runs.close_session(session.session_id, principal=ALICE))
        tries = 0
        while not closing.done():  # in each of its steps
            tries += 1
            with pytest.raises((Busy, NotFound)):
                await desk.start("Another?", session_id=session.session_id)
        await closing
        assert tries > 0
        assert (await desk.ended(running)).state is RunState.CANCELLED
        assert desk.fakes.open_now == 0


async def test_a_run_that_begins_while_its_session_is_closed_is_cancelled_and_not_broken(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST, SECOND)) as desk:
        await desk.ask("How long?", context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        desk.chat.gate.clear()
        starting = asyncio.create_task(desk.start("And one more?", session_id=session.session_id))
        await until(lambda: desk.runs.sessions(principal=ALICE)[0].busy)
        await desk.runs.close_session(session.session_id, principal=ALICE)
        run = await desk.ended(await starting)
        assert run.state is RunState.CANCELLED
        assert run.problem is not None
        assert "session was closed" in run.problem.message


async def test_what_a_caller_has_stored_is_bounded_uploads_under_way_too(tmp_path: Path) -> None:
    async with house(tmp_path, lambda _: FIRST) as desk:
        alice = Principal("alice", Quotas(max_stored_bytes=40_000))

        async def store(data: bytes) -> ContextView:
            header = ContextHeader(ContextKind.TEXT, len(data), hashlib.sha256(data).digest())
            return await desk.runs.upload(header, _pieces(data, 1000), principal=alice)

        results = await asyncio.gather(*(store(bytes([65 + n]) * 15_000) for n in range(5)), return_exceptions=True)
        kept = [each for each in results if isinstance(each, ContextView)]
        assert len(kept) == 2
        assert all(isinstance(each, QuotaExceeded) for each in results if each not in kept)
        await desk.runs.delete_context(kept[0].context_id, principal=alice)
        await store(b"z" * 15_000)
        run = await desk.ask("x" * 10_000, context=TEXT)  # runs are never refused for it, and count
        with pytest.raises(QuotaExceeded, match="max_stored_bytes"):
            await store(b"y")
        await desk.runs.delete(run.run_id, principal=alice)
        await store(b"y")


async def test_an_upload_that_is_cancelled_at_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, replies()) as desk:
        for steps in range(8):
            uploading = asyncio.create_task(upload(desk, b"some content"))
            for _ in range(steps):
                await asyncio.sleep(0)
            uploading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await uploading
        assert [path.name for path in (tmp_path / "store.db.contexts").iterdir()] == []


async def test_a_first_run_that_never_had_a_sandbox_leaves_no_session(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST)) as desk:
        run = await desk.start(context=TEXT, keep_session_s=60)
        await desk.runs.cancel(run.run_id, principal=ALICE)
        assert all(not session.busy for session in desk.runs.sessions(principal=ALICE))


async def test_a_further_context_becomes_a_variable_and_the_model_is_told(tmp_path: Path) -> None:
    async with house(tmp_path, replies(FIRST, code("FINAL(len(more) + found)"))) as desk:
        more = await upload(desk, b"some more text")
        await desk.ask(context=TEXT, keep_session_s=60)
        (session,) = desk.runs.sessions(principal=ALICE)
        for name in ("not an identifier", "context", "FINAL", "found", "__x"):
            with pytest.raises(InvalidInput, match="variable"):
                await desk.runs.add_session_context(session.session_id, more.context_id, name, principal=ALICE)
        with pytest.raises(NotFound):
            await desk.runs.add_session_context(session.session_id, "ctx_0", "more", principal=ALICE)
        with pytest.raises(NotFound):
            await desk.runs.add_session_context(session.session_id, more.context_id, "more", principal=BOB)
        await desk.runs.add_session_context(session.session_id, more.context_id, "more", principal=ALICE)
        with pytest.raises(InvalidInput, match="taken"):
            await desk.runs.add_session_context(session.session_id, more.context_id, "more", principal=ALICE)
        run = await desk.ask("How long are both?", session_id=session.session_id)
        assert run.answer == "28"
        assert run.query == "How long are both?"
        assert "`more`, a str of 14 characters" in desk.chat.calls[-1].messages[-1].content


async def test_sessions_and_kept_sandboxes_leave_room_for_the_deepest_run(tmp_path: Path) -> None:
    settings = HostingSettings(max_depth=2)
    async with house(tmp_path, lambda _: FIRST, settings=settings, capacity=4) as desk:
        for _ in range(2):
            await desk.ask(context=TEXT, keep_session_s=60)
        with pytest.raises(QuotaExceeded, match="RLM_CAPACITY"):
            await desk.start(context=TEXT, keep_session_s=60)
        assert set(desk.fakes.heights) == {1}  # beneath each stays what the deepest run needs
        assert (await desk.ask(context=TEXT)).answer == "14"
        (session, _) = desk.runs.sessions(principal=ALICE)
        await desk.runs.close_session(session.session_id, principal=ALICE)
        assert (await desk.ask(context=TEXT, keep_session_s=60)).answer == "14"


async def test_a_principal_s_quota_counts_its_sessions(tmp_path: Path) -> None:
    alice = Principal("alice", Quotas(max_sandboxes=1))
    async with house(tmp_path, lambda _: FIRST) as desk:
        await desk.ask(context=TEXT, keep_session_s=60, principal=alice)
        with pytest.raises(QuotaExceeded, match="max_sandboxes"):
            await desk.start(context=TEXT, keep_session_s=60, principal=alice)
        await desk.ask(context=TEXT, keep_session_s=60, principal=BOB)
        assert desk.runs.sessions(principal=BOB) != desk.runs.sessions(principal=alice)
        assert len(desk.runs.sessions(principal=ADMIN)) == 2


# --- uploads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        (ContextKind.TEXT, "Grüße an alle".encode(), ("str", 13, "characters", "Grüße an alle")),
        (ContextKind.JSON, b'[{"a": 1}, {"b": 2}]', ("list[dict]", 2, "items", '[{"a": 1}, {"b": 2}]')),
        (ContextKind.BYTES, b"\xff\x00ab", ("bytes", 4, "bytes", "b'\\xff\\x00ab'")),
        (ContextKind.TEXT, b"", ("str", 0, "characters", "")),
    ],
)
async def test_an_upload_is_described_as_the_code_will_see_it(
    tmp_path: Path, kind: ContextKind, data: bytes, shown: tuple[str, int, str, str]
) -> None:
    async with house(tmp_path, lambda _: FIRST) as desk:
        info = (await upload(desk, data, kind)).info
        assert (info.type_name, info.length, info.unit, info.head) == shown
        assert (info.kind, info.size_bytes, info.tail) == (kind, len(data), "")


async def test_an_upload_is_used_by_runs_and_stays_until_it_is_deleted(tmp_path: Path) -> None:
    async with house(tmp_path, lambda _: FIRST) as desk:
        context = await upload(desk, b"0123456789")
        desk.chat.gate.clear()
        run = await desk.start(context=Uploaded(context.context_id))
        with pytest.raises(Busy):
            await desk.runs.delete_context(context.context_id, principal=ALICE)
        desk.chat.gate.set()
        assert (await desk.ended(run)).answer == "10"
        for call in (
            lambda: desk.start(context=Uploaded(context.context_id), principal=BOB),
            lambda: desk.runs.delete_context(context.context_id, principal=BOB),
        ):
            with pytest.raises(NotFound):
                await call()
        assert (await desk.runs.contexts(principal=ALICE)).items == (context,)
        assert (await desk.runs.contexts(principal=BOB)).items == ()
        await desk.runs.delete_context(context.context_id, principal=ALICE)
        assert (await desk.runs.contexts(principal=ALICE)).items == ()


@pytest.mark.parametrize(
    ("header", "data", "name"),
    [
        (ContextHeader(ContextKind.TEXT, 3, hashlib.sha256(b"abcd").digest()), b"abcd", "size_bytes"),
        (ContextHeader(ContextKind.TEXT, 5, hashlib.sha256(b"abcd").digest()), b"abcd", "size_bytes"),
        (ContextHeader(ContextKind.TEXT, 4, bytes(32)), b"abcd", "sha256"),
        (ContextHeader(ContextKind.TEXT, 4, b"short"), b"abcd", "header"),
        (ContextHeader(ContextKind.TEXT, 2, hashlib.sha256(b"\xff\xff").digest()), b"\xff\xff", "chunk"),
        (ContextHeader(ContextKind.TEXT, 1, hashlib.sha256(b"\xc3").digest()), b"\xc3", "chunk"),
        (ContextHeader(ContextKind.JSON, 1, hashlib.sha256(b"{").digest()), b"{", "context"),
    ],
)
async def test_an_upload_that_is_not_what_it_says_leaves_nothing(
    tmp_path: Path, header: ContextHeader, data: bytes, name: str
) -> None:
    async with house(tmp_path, lambda _: FIRST) as desk:
        with pytest.raises(InvalidInput) as caught:
            await desk.runs.upload(header, _pieces(data), principal=ALICE)
        assert caught.value.name == name
        assert (await desk.runs.contexts(principal=ALICE)).items == ()
        assert list((tmp_path / "store.db.contexts").iterdir()) == []
