"""What a server has recorded: asked of the server, or read from its store when no server holds that."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.cli import interrupts
from orchestrator.cli.services import Services, connected
from orchestrator.errors import Busy, NotFound, ServiceFailed, ServiceFailure, StoreFailed, StoreFailure
from orchestrator.events import Record
from orchestrator.folds.journal import FORMAT, VERSION, Header, JournalWriter

if TYPE_CHECKING:
    from orchestrator.client.calls import Client
    from orchestrator.store.database import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recorded:
    """Read like a `JournalReader`."""

    records: tuple[Record, ...]
    header: Header
    cut: bool = False

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


def ask_or_read(
    services: Services,
    server: str | None,
    ask: Callable[[Client], Coroutine[Any, Any, T]],
    read: Callable[[Store], T],
) -> T:
    """What the server says; or, when none is named and none of this user answers here, what its store holds.

    Raises what `ask` and `read` raise; `ServiceFailed`, also when there is no store; `StoreFailed`.
    """
    address = services.server(server)
    local = services.named(server) is None

    async def asking() -> T:
        async with connected(address, services.environ) as client:
            return await ask(client)

    if not local or Path(address.removeprefix("unix:")).is_socket() or not services.store.is_file():
        try:
            return interrupts.run(asking, stopping="the server is asked no more")
        except ServiceFailed as error:
            # A server that was killed leaves its socket.
            gone = local and error.kind is ServiceFailure.UNREACHABLE and services.store.is_file()
            if not gone:
                raise
    from orchestrator.store.database import Store

    with ExitStack() as stack:
        try:
            store = stack.enter_context(Store.open(services.store))
        except StoreFailed as error:
            if error.kind is not StoreFailure.LOCKED:
                raise
            detail = f"a server has {services.store} open, and does not listen on {address}."
            raise StoreFailed(error.kind, detail, "Say where it listens: --server ADDRESS.") from error
        return read(store)


def export(run_id: str, services: Services, server: str | None, path: Path) -> None:
    """Writes it as a recording. Raises what `find` raises; `InvalidInput` for a file that cannot be written."""

    async def ask(client: Client) -> None:
        if (await client.get(run_id)).ended_at is None:
            raise Busy(f"the run {run_id} goes on.", f"See: rlm watch {run_id}")
        with JournalWriter(path, package=version("rlm-orchestrator"), called="--export") as journal:
            async for record in client.watch(run_id, with_pieces=False):
                journal(record)
        if journal.problem:
            raise StoreFailed(StoreFailure.DISK_FULL, journal.problem, "Free some space, or name another disk.")

    ask_or_read(services, server, ask, lambda store: store.export_jsonl(run_id, path))


def find(run_id: str, services: Services, server: str | None) -> Recorded:
    """Raises `NotFound`; `Busy` for a run that goes on; `ServiceFailed`, `StoreFailed`."""

    async def ask(client: Client) -> tuple[Record, ...]:
        if (await client.get(run_id)).ended_at is None:
            raise Busy(f"the run {run_id} goes on.", f"See: rlm watch {run_id}")
        return tuple([record async for record in client.watch(run_id, with_pieces=False)])

    def read(store: Store) -> tuple[Record, ...]:
        if store.find_run(run_id) is None:
            raise NotFound("run", run_id)
        found: list[Record] = []
        while part := store.records(run_id, found[-1].seq if found else 0):
            found += part
        return tuple(found)

    return Recorded(ask_or_read(services, server, ask, read), Header(FORMAT, VERSION, version("rlm-orchestrator")))
