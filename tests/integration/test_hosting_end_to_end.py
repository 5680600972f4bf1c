"""The desks over the real thing: containers, a scripted model server, and a store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.config import RunSettings
from orchestrator.errors import FileFailed, FileFailure, NotFound
from orchestrator.hosting.orders import ContextHeader, RunOrder, SandboxModel, SandboxOrder, Uploaded
from orchestrator.hosting.principals import Principal
from orchestrator.hosting.run_desk import RunDesk
from orchestrator.hosting.sandbox_desk import SandboxDesk
from orchestrator.hosting.settings import HostingSettings
from orchestrator.seams import MAX_FILE_BYTES
from orchestrator.store.database import Store
from orchestrator.testing.scripted import Policy, constant, sequence
from orchestrator.values import Attachment, CellResult, ContextKind
from orchestrator.views import RunState, RunView
from tests.integration.e2e_world import containers_of, reply, world

pytestmark = [pytest.mark.docker]

ALICE = Principal("alice")
SETTINGS = RunSettings(models=("depth-0", "leaf"))
TEXT = Attachment(ContextKind.TEXT, b"the whole text")


@asynccontextmanager
async def desks(policies: dict[str, Policy], folder: Path) -> AsyncIterator[tuple[RunDesk, SandboxDesk]]:
    async with world(policies, capacity=4) as made:
        with Store.open(folder / "store.db") as store:
            opening = RunDesk.open(made.orchestrator, store, HostingSettings(max_depth=2))
            async with opening as runs, SandboxDesk.open(runs) as sandboxes:
                yield runs, sandboxes


async def ended(runs: RunDesk, run: RunView) -> RunView:
    async for _ in runs.watch(run.run_id, principal=ALICE):
        pass
    return await runs.get(run.run_id, principal=ALICE)


async def cell(sandboxes: SandboxDesk, sandbox_id: str, code: str) -> CellResult:
    items = [item async for item in sandboxes.run_cell(sandbox_id, code, principal=ALICE)]
    result = items[-1]
    assert isinstance(result, CellResult)
    return result


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def fill(sandboxes: SandboxDesk, sandbox_id: str, data: bytes) -> None:
    for number in range(8):  # /tmp has 256 MiB
        await sandboxes.write_file(sandbox_id, f"fill-{number}", data, principal=ALICE)


SUM = "import hashlib\nprint(hashlib.sha256(open('/tmp/data/big.bin', 'rb').read()).hexdigest())"


def one_by_one(*codes: str) -> Policy:
    return sequence([reply(code) for code in codes] or [""])


async def test_a_session_goes_on_in_one_container_with_a_context_more(
    no_leaks: None, state_dir: Path, tmp_path: Path
) -> None:
    policy = one_by_one("found = len(context)\nFINAL(found)", "FINAL(found + len(more))")
    async with desks({"depth-0": policy}, tmp_path) as (runs, _):
        first = await runs.start(
            RunOrder(principal=ALICE, settings=SETTINGS, query="How long?", context=TEXT, keep_session_s=60)
        )
        assert (await ended(runs, first)).answer == "14"
        (session,) = runs.sessions(principal=ALICE)
        data = b"some more text"
        header = ContextHeader(ContextKind.TEXT, len(data), hashlib.sha256(data).digest())
        more = await runs.upload(header, pieces(data), principal=ALICE)
        await runs.add_session_context(session.session_id, more.context_id, "more", principal=ALICE)
        before = await containers_of(state_dir)
        second = await runs.start(
            RunOrder(principal=ALICE, settings=SETTINGS, query="And both?", session_id=session.session_id)
        )
        view = await ended(runs, second)
        assert (view.state, view.answer) == (RunState.SUCCEEDED, "28")
        assert before == await containers_of(state_dir)
        await runs.close_session(session.session_id, principal=ALICE)
        assert runs.sessions(principal=ALICE) == ()


async def test_an_uploaded_context_is_read_by_a_run(no_leaks: None, state_dir: Path, tmp_path: Path) -> None:
    async with desks({"depth-0": one_by_one("FINAL(sum(context))")}, tmp_path) as (runs, _):
        data = b"[1, 2, 3]"
        header = ContextHeader(ContextKind.JSON, len(data), hashlib.sha256(data).digest())
        context = await runs.upload(header, pieces(data), principal=ALICE)
        run = await runs.start(
            RunOrder(principal=ALICE, settings=SETTINGS, query="Sum?", context=Uploaded(context.context_id))
        )
        assert (await ended(runs, run)).answer == "6"
        await runs.delete_context(context.context_id, principal=ALICE)


async def test_files_go_into_a_container_and_out_and_no_link_is_followed(
    no_leaks: None, state_dir: Path, tmp_path: Path
) -> None:
    async with desks({"depth-0": one_by_one()}, tmp_path) as (_, sandboxes):
        sandbox = (await sandboxes.create(SandboxOrder(principal=ALICE))).sandbox_id
        big = bytes(range(256)) * (MAX_FILE_BYTES // 256)
        await sandboxes.write_file(sandbox, "data/big.bin", big, principal=ALICE)
        summed = await cell(
            sandboxes,
            sandbox,
            "import hashlib\nprint(hashlib.sha256(open('/tmp/data/big.bin','rb').read()).hexdigest())",
        )
        assert summed.stdout.text.strip() == hashlib.sha256(big).hexdigest()
        assert await sandboxes.read_file(sandbox, "data/big.bin", principal=ALICE) == big
        made = await cell(
            sandboxes,
            sandbox,
            "import os\nos.symlink('/proc/1/environ', '/tmp/link')\nos.mkfifo('/tmp/pipe')\n"
            "os.symlink('/proc/1', '/tmp/folder')\nopen('/tmp/out.txt', 'w').write('made here')",
        )
        assert made.error is None
        assert await sandboxes.read_file(sandbox, "out.txt", principal=ALICE) == b"made here"
        for path in ("link", "pipe", "folder/environ", "data"):
            with pytest.raises(FileFailed) as caught:
                await sandboxes.read_file(sandbox, path, principal=ALICE)
            assert caught.value.kind is FileFailure.NOT_REGULAR
        with pytest.raises(FileFailed) as caught:
            await fill(sandboxes, sandbox, big)
        assert caught.value.kind is FileFailure.DISK_FULL
        assert (await cell(sandboxes, sandbox, "print('alive')")).stdout.text == "alive\n"


async def test_a_kept_sandbox_asks_its_model_and_is_gone_when_it_is_deleted(
    no_leaks: None, state_dir: Path, tmp_path: Path
) -> None:
    async with desks({"depth-0": constant("an answer")}, tmp_path) as (_, sandboxes):
        order = SandboxOrder(principal=ALICE, model=SandboxModel("depth-0"))
        sandbox = (await sandboxes.create(order)).sandbox_id
        assert (await cell(sandboxes, sandbox, "print(llm_query('hi'))")).stdout.text == "an answer\n"
        lost = await cell(sandboxes, sandbox, "import os\nos._exit(3)")
        assert lost.state_lost
        assert (await cell(sandboxes, sandbox, "print(llm_query('hi'))")).stdout.text == "an answer\n"
        assert (await sandboxes.get(sandbox, principal=ALICE)).spent.calls == 2
        await sandboxes.delete(sandbox, principal=ALICE)
        with pytest.raises(NotFound):
            await sandboxes.get(sandbox, principal=ALICE)
