"""The scripted server for code that is not async: in a thread, with an event loop of its own.

with ScriptedServerThread({"echo": echo}) as server:
    run_the_demo(server.base_url)
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

from orchestrator.testing.scripted.chat import Policy
from orchestrator.testing.scripted.record import RecordedRequest, RequestLog, RequestState
from orchestrator.testing.scripted.server import ScriptedServer

T = TypeVar("T")


class ScriptedServerThread:
    """A `ScriptedServer` for the length of a `with`. Takes the same arguments, and raises the same errors.

    Policies run in the server's thread. Each property is a consistent value of some moment.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: str = "",
        max_recorded: int = 10_000,
    ) -> None:
        self._server = ScriptedServer(policies, host=host, port=port, faults=faults, max_recorded=max_recorded)
        self._address: concurrent.futures.Future[str] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="scripted-server", daemon=True)

    @property
    def url(self) -> str:
        """`http://host:port`, without a path. Raises RuntimeError before the server is open."""
        if not self._address.done():
            raise RuntimeError("the server has no address: open it in a `with` first")
        return self._address.result()

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as `base_url`."""
        return f"{self.url}/v1"

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        return self._on_loop(lambda: self._server.requests)

    @property
    def in_flight(self) -> int:
        return self._server.in_flight

    @property
    def max_in_flight(self) -> int:
        return self._server.max_in_flight

    def count(self, state: RequestState) -> int:
        return self._on_loop(lambda: self._server.count(state))

    def reset(self) -> None:
        self._on_loop(self._server.reset)

    def wait_for(self, predicate: Callable[[RequestLog], bool], timeout_s: float = 10.0) -> None:
        """Return once the predicate holds; it runs in the server's thread.

        Raises TimeoutError if it does not hold in time.
        """
        if self._loop is None:
            raise RuntimeError("the server is not open: use it in a `with`")

        async def wait() -> None:
            async with asyncio.timeout(timeout_s):
                await self._server.wait_for(predicate)

        asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        self._address.result()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _on_loop(self, read: Callable[[], T]) -> T:
        if self._loop is None or not self._thread.is_alive():
            # Before and after its life the server changes no more, so a look from any thread is safe.
            return read()

        async def on_loop() -> T:
            return read()

        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._server:
                self._loop, self._stop = loop, stop
                self._address.set_result(self._server.url)
                await stop.wait()
        except BaseException as error:
            if self._address.done():
                raise
            self._address.set_exception(error)
