"""One event loop for the whole process, in a thread of its own, so that synchronous and asynchronous callers share it.

An HTTP client that is used from two event loops fails or pays hidden retries; so whoever calls, from a notebook with a
running loop, a script without one or ten threads, the work is done here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import os
import threading
from collections.abc import Callable, Container, Coroutine
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class GivenUp(RuntimeError):
    """The loop was closed while the work was under way: nobody asked for its end who waits for it."""


class _Stopped(Exception):
    """A SystemExit or KeyboardInterrupt out of the work: asyncio would end the loop with it, which others use too."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Work(Generic[T]):
    """Something that runs in the loop. `outcome` is settled when it has ended and cleaned up, not before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self.outcome: Future[T] = Future()
        self.thread = threading.current_thread()  # that it was submitted in
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False
        loop.call_soon_threadsafe(self._start, coroutine)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(_contained(coroutine))
        self._task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            given_up = GivenUp("this was closed while it was under way")
            self.outcome.set_exception(asyncio.CancelledError() if self._cancelled else given_up)
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error.reason if isinstance(error, _Stopped) else error)
        else:
            self.outcome.set_result(task.result())

    def cancel(self) -> None:
        """Asks it to stop; safe from any thread."""
        self._cancelled = True
        try:
            self._loop.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel())
        except RuntimeError:
            pass  # the loop is closed: it has ended


async def _contained(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as stopped:
        raise _Stopped(stopped) from None


class LoopThread:
    """An event loop that runs in a daemon thread until `close`. A child process that is forked has none of it."""

    def __init__(self, name: str = "rlm-loop") -> None:
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._under_way: set[Work[Any]] = set()  # the loop itself holds tasks weakly: one could be collected
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Work[T]:
        """Starts `work` in the loop; for callers in any thread.

        Raises `RuntimeError` after `close`, and in a forked child.
        """
        if self._inherited or self._loop.is_closed():
            work.close()
            reason = "belongs to the process that this one was forked from" if self._inherited else "is closed"
            raise RuntimeError(f"the event loop of this {reason}: make a new one here")
        started = Work(self._loop, work)
        self._under_way.add(started)
        started.outcome.add_done_callback(lambda _: self._under_way.discard(started))
        return started

    @property
    def _inherited(self) -> bool:
        return os.getpid() != self._process

    def wait_for_threads(self) -> None:
        """Waits for what threads have submitted that Python itself waits for before it exits."""
        while waiting := [
            work.outcome for work in tuple(self._under_way) if work.thread.is_alive() and _is_waited_for(work.thread)
        ]:
            wait(waiting)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for `work`. An interrupt of the waiting thread cancels it and waits until it has cleaned up.

        Raises `RuntimeError` when called from this loop itself, where waiting would never end.
        """
        if threading.get_ident() == self._thread.ident:
            work.close()
            raise RuntimeError("a blocking call was made from the orchestrator's own event loop; await the async twin")
        started = self.submit(work)
        try:
            return started.outcome.result()
        except BaseException:
            started.cancel()
            wait([started.outcome])
            raise

    async def call_async(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits `work` from another loop. Cancelling the waiter cancels the work and waits until it has cleaned up."""
        started = self.submit(work)
        ended = asyncio.wrap_future(started.outcome)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            started.cancel()
            await asyncio.wait([ended])
            ended.cancelled() or ended.exception()  # seen: what it came to is of no interest now
            raise

    def close(self) -> None:
        """Stops the loop; what still runs in it is cancelled first and awaited."""
        if self._inherited or self._loop.is_closed():
            return
        self.call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


_lock = threading.Lock()
_process_loop: LoopThread | None = None


def process_loop() -> LoopThread:
    """The process's one loop; started when it is first asked for."""
    global _process_loop
    with _lock:
        if _process_loop is None:
            _process_loop = LoopThread()
        return _process_loop


_closers: list[Callable[[], Coroutine[Any, Any, None]]] = []


def before_exit(closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Has `closer` run in the process's loop when the process ends; those named last run first.

    What is open is to be left in order by these: gRPC's servers do not bear that all tasks are canceled at once.
    """
    _closers.append(closer)


def _close() -> None:
    if _process_loop is None:
        return
    try:
        _wait_for_plain_threads()
        _process_loop.wait_for_threads()
        for closer in reversed(_closers):
            _process_loop.call(closer())
    finally:
        _process_loop.close()


def _wait_for_plain_threads() -> None:
    """Python would do so right after; they may be about to ask for something more.

    A pool's threads never end by themselves, so only what they have asked for already is waited for.
    """
    for thread in threading.enumerate():
        if _is_waited_for(thread) and thread not in _pool_threads():
            thread.join()


def _is_waited_for(thread: threading.Thread) -> bool:
    return not thread.daemon and thread not in (threading.main_thread(), threading.current_thread())


def _pool_threads() -> Container[threading.Thread]:
    queues: Container[threading.Thread] = concurrent.futures.thread._threads_queues
    return queues


def _forget() -> None:
    global _lock, _process_loop
    _lock, _process_loop = threading.Lock(), None


# A forked child has the loop's memory and not its thread: to wait for it, as at the exit, would be for ever.
os.register_at_fork(after_in_child=_forget)
# Not `atexit`: by then the interpreter has shut all thread pools down, and the engine can only be asked from one. These
# run before that, the last registered first, so the pools' own must be registered already.
importlib.import_module("concurrent.futures.thread")
threading._register_atexit(_close)  # type: ignore[attr-defined]
