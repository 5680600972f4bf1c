"""The factory with its pool, its slots and its cleaning up, on an engine of scripted guests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.errors import InvalidInput, LossCause, SandboxLost, SandboxUnavailable
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox.context_store import FileContextStore
from orchestrator.sandbox.engine import OwnedContainer
from orchestrator.sandbox.factory import DockerSandboxes
from orchestrator.sandbox.settings import SandboxSettings
from orchestrator.sandbox.state_dir import open_state_dir, owner_record
from tests.unit.sandbox_doubles import FakeEngine, ScriptedGuest


@pytest.fixture
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # pytest's own paths are too long for a socket.
    path = Path(os.path.realpath("/tmp"), f"rlm-t-{os.getpid()}-{os.urandom(3).hex()}")
    tmp_path_factory.getbasetemp()
    return path


@pytest.fixture(autouse=True)
def _removed_afterwards(state_dir: Path) -> object:
    import shutil

    yield
    shutil.rmtree(state_dir, ignore_errors=True)


@asynccontextmanager
async def factory(engine: FakeEngine, state_dir: Path, **settings: object) -> AsyncIterator[DockerSandboxes]:
    """Checks on the way out that nothing is left."""
    chosen = SandboxSettings(state_dir=state_dir, **{"pool_max": 0, **settings})  # type: ignore[arg-type]
    before = set(asyncio.all_tasks())
    async with DockerSandboxes.start(chosen, engine=engine) as sandboxes:
        yield sandboxes
    assert not engine.specs
    assert not list((state_dir / "s").iterdir())
    assert not list((state_dir / "owners").iterdir())
    assert asyncio.all_tasks() == before


async def test_a_sandbox_is_single_use_and_gone_after_its_block(state_dir: Path) -> None:
    engine = FakeEngine()
    async with factory(engine, state_dir) as sandboxes:
        async with sandboxes.open(None, None) as first:
            assert (await first.run("hello")).stdout.text == "hello"
        async with sandboxes.open(None, None) as second:
            assert second.name != first.name
        with pytest.raises(SandboxLost) as caught:
            await first.run("again")
        assert caught.value.cause is LossCause.CLOSED
    assert sorted(engine.destroyed) == sorted([first.name, second.name])


async def test_a_sandbox_at_rest_is_told_and_removed_a_while_after_its_block(state_dir: Path) -> None:
    """Removing keeps the engine busy just when its owner takes the next."""
    engine = FakeEngine()
    async with factory(engine, state_dir, removal_delay_s=3_600.0) as sandboxes:
        async with sandboxes.open(None, None) as first:
            await first.run("hello")
        async with sandboxes.open(None, None) as second:
            await second.run("hello")
        assert not engine.destroyed
        assert engine.alive(first.name)  # its guest would leave if it were told
        with pytest.raises(SandboxLost):
            await first.run("again")
    # Who leaves the factory does not wait for the hour.
    assert sorted(engine.destroyed) == sorted([first.name, second.name])


async def test_after_the_delay_it_is_removed(state_dir: Path) -> None:
    engine = FakeEngine()
    async with factory(engine, state_dir, removal_delay_s=0.01) as sandboxes:
        async with sandboxes.open(None, None) as sandbox:
            pass
        await engine.removed(sandbox.name)


async def test_a_sandbox_whose_code_still_runs_is_removed_at_once(state_dir: Path) -> None:
    began = asyncio.Event()

    async def endless(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        began.set()
        await asyncio.Event().wait()

    engine = FakeEngine(endless)
    async with factory(engine, state_dir, removal_delay_s=3_600.0) as sandboxes:
        async with sandboxes.open(None, None) as sandbox:
            running = asyncio.create_task(sandbox.run("while True: pass"))
            await began.wait()
        with pytest.raises(SandboxLost):
            await running
        await engine.removed(sandbox.name)


async def test_the_context_is_a_file_beside_the_socket_and_not_a_message(state_dir: Path) -> None:
    opens: list[tuple[pb.Open, bytes]] = []

    async def look(guest: ScriptedGuest, cell: pb.RunCell) -> None:
        opened = guest.opens[0]
        [directory] = live_directories(state_dir)
        path = directory / opened.context.file_name
        opens.append((opened, path.read_bytes()))
        assert path.stat().st_mode & 0o777 == 0o644
        await guest.send(pb.AttachRequest(cell_ended=pb.CellEnded(cell=cell.cell, status=pb.CELL_STATUS_OK)))

    async with factory(FakeEngine(look), state_dir) as sandboxes:
        store = FileContextStore(sandboxes.context_dir)
        context = await store.put(["a", "b"])
        async with sandboxes.open(context, None) as sandbox:
            await store.drop(context)  # a sandbox that has it keeps it
            await sandbox.run("")
    [(opened, data)] = opens
    assert data == b'["a", "b"]'
    assert (opened.context.kind, opened.context.size_bytes) == (pb.CONTEXT_KIND_JSON, len(data))
    assert opened.context.variable == "context"
    assert not opened.queries_allowed


async def test_each_sandbox_has_the_policy_its_own_directory_and_an_owner(state_dir: Path) -> None:
    engine = FakeEngine()
    async with (
        factory(engine, state_dir, memory_mib=512, max_lifetime_s=9.0) as sandboxes,
        sandboxes.open(None, None),
        sandboxes.open(None, None),
    ):
        one, two = engine.specs.values()
        assert one.directory != two.directory
        assert one.labels == two.labels
        assert set(one.labels) == {"rlm.owner", "rlm.state"}
        assert one.policy.memory_mib.value == 512
        assert one.environment == {
            "RLM_ADDRESS": "unix:/rlm/host.sock",
            "RLM_MAX_LIFETIME_S": "9",
            "USER": "sandbox",
            "LOGNAME": "sandbox",
        }
        assert one.identity != two.identity, "they would share what the kernel counts by user"
        assert one.directory.stat().st_mode & 0o777 == 0o711
        assert os.stat(state_dir).st_mode & 0o777 == 0o700


async def test_a_warm_sandbox_is_there_before_it_is_asked_for(state_dir: Path) -> None:
    engine = FakeEngine()
    async with factory(engine, state_dir, pool_min=1, pool_max=1) as sandboxes:
        await ready(sandboxes, 1)
        async with sandboxes.open(None, None) as sandbox:
            assert sandbox.warm
            await ready(sandboxes, 1)  # refilled
        assert engine.started == 2


async def test_warm_up_starts_once_and_the_first_need_takes_it(state_dir: Path) -> None:
    engine = FakeEngine()
    async with factory(engine, state_dir) as sandboxes:
        sandboxes.warm_up(1)
        async with sandboxes.open(None, None) as sandbox:
            assert not sandbox.warm  # it was under way, not ready
        assert engine.started == 1


async def test_what_was_warmed_up_and_not_taken_goes_after_a_while(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.sandbox.pool._DEMAND_WINDOW_S", 0.01)
    engine = FakeEngine()
    async with factory(engine, state_dir, pool_max=2) as sandboxes:
        sandboxes.warm_up(1)
        await engine.starting.wait()
        [spare] = engine.specs
        await engine.removed(spare)
        assert sandboxes.idle == 0


async def test_an_idle_sandbox_that_died_is_not_handed_out(state_dir: Path) -> None:
    engine = FakeEngine()
    async with factory(engine, state_dir, pool_min=1, pool_max=1) as sandboxes:
        await ready(sandboxes, 1)
        [dead] = engine.specs
        engine.kill(dead)
        await engine.removed(dead)
        async with sandboxes.open(None, None) as sandbox:
            assert (await sandbox.run("alive")).stdout.text == "alive"
            assert sandbox.name != dead


async def test_a_guest_that_was_silent_has_to_answer_before_it_is_handed_out(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.sandbox.hearing._LATELY_S", 0.0)
    engine = FakeEngine()
    async with factory(engine, state_dir, pool_min=1, pool_max=1) as sandboxes:
        await ready(sandboxes, 1)
        [dead] = engine.specs
        engine.kill(dead)  # and nobody has noticed yet
        async with sandboxes.open(None, None) as sandbox:
            assert (await sandbox.run("alive")).stdout.text == "alive"
            assert sandbox.name != dead


async def test_a_failed_start_is_told_and_leaves_nothing(state_dir: Path) -> None:
    engine = FakeEngine()
    engine.fail_starts = 1
    async with factory(engine, state_dir) as sandboxes:
        with pytest.raises(SandboxUnavailable, match="told to fail"):
            async with sandboxes.open(None, None):
                pass
        assert not engine.specs
        assert not live_directories(state_dir)
        async with sandboxes.open(None, None) as sandbox:
            await sandbox.run("")


async def test_a_container_that_ends_at_once_is_told_with_its_status(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.sandbox.launcher._EXIT_CHECK_S", 0.01)
    engine = FakeEngine()
    engine.exit_code = 3
    async with factory(engine, state_dir) as sandboxes:
        with pytest.raises(SandboxUnavailable, match="status 3"):
            async with sandboxes.open(None, None):
                pass


async def test_a_start_that_is_cancelled_leaves_nothing(state_dir: Path) -> None:
    engine = FakeEngine()
    engine.start_gate.clear()
    async with factory(engine, state_dir) as sandboxes:
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(stack.enter_async_context(sandboxes.open(None, None)))
            await engine.starting.wait()
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        assert not engine.specs
        assert sandboxes.in_use == 0


async def test_no_room_in_time_names_the_limit(state_dir: Path) -> None:
    async with (
        factory(FakeEngine(), state_dir, capacity=1, queue_timeout_s=0.01) as sandboxes,
        sandboxes.open(None, None),
    ):
        with pytest.raises(SandboxUnavailable, match="capacity=1"):
            async with sandboxes.open(None, None):
                pass


async def test_a_height_that_the_capacity_can_never_hold_is_refused(state_dir: Path) -> None:
    async with factory(FakeEngine(), state_dir, capacity=2) as sandboxes:
        with pytest.raises(InvalidInput, match="RLM_CAPACITY=3"):
            async with sandboxes.open(None, None, height=2):
                pass


async def test_what_a_dead_owner_left_is_removed_and_told_and_a_living_ones_is_not(state_dir: Path) -> None:
    engine = FakeEngine()
    state = open_state_dir(state_dir)
    with owner_record(state) as dead:
        state.make_sandbox_dir(f"{dead}-1")
    with owner_record(state) as alive:
        state.make_sandbox_dir(f"{alive}-1")
        engine.strays = {
            "rlm-dead-1": OwnedContainer("rlm-dead-1", dead, True),
            "rlm-alive-1": OwnedContainer("rlm-alive-1", alive, True),
        }
        state.leave_note(dead, "process 7 was killed")
        settings = SandboxSettings(state_dir=state_dir, pool_max=0)
        async with DockerSandboxes.start(settings, engine=engine) as sandboxes:
            assert sandboxes.reclaimed.containers == ("rlm-dead-1",)
            assert sandboxes.reclaimed.directories == (f"{dead}-1",)
            assert sandboxes.reclaimed.notes == ("process 7 was killed",)
            assert "rlm-dead-1" in str(sandboxes.reclaimed)
        assert list(engine.strays) == ["rlm-alive-1"]
        assert state.sandbox_names() == [f"{alive}-1"]


async def test_the_sweep_removes_what_was_not_removed_before(state_dir: Path) -> None:
    engine = FakeEngine()
    async with (
        factory(engine, state_dir, sweep_interval_s=0.02) as sandboxes,
        sandboxes.open(None, None) as sandbox,
    ):
        [spec] = engine.specs.values()
        owner = spec.labels["rlm.owner"]
        engine.strays["rlm-forgotten"] = OwnedContainer("rlm-forgotten", owner, False)
        await engine.removed("rlm-forgotten")
        assert (await sandbox.run("untouched")).stdout.text == "untouched"


def test_a_state_directory_that_others_can_enter_is_refused(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o755)
    with pytest.raises(InvalidInput, match="chmod 700"):
        open_state_dir(state_dir)


def test_a_state_directory_behind_a_link_is_refused(state_dir: Path, tmp_path: Path) -> None:
    state_dir.symlink_to(tmp_path)
    try:
        with pytest.raises(InvalidInput, match="not a directory of this user"):
            open_state_dir(state_dir)
    finally:
        state_dir.unlink()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="shorter path"):
        open_state_dir(tmp_path / ("x" * 90))


def live_directories(state_dir: Path) -> list[Path]:
    return [path for path in (state_dir / "s").iterdir() if not path.name.endswith("-contexts")]


async def ready(sandboxes: DockerSandboxes, count: int) -> None:
    """The pool has no event for it, and needs none but here."""
    while sandboxes.idle < count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
