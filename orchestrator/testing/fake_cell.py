"""One cell in a thread of this process, and what it has while it runs: the inside of `fake_sandbox.FakeSandbox`."""

from __future__ import annotations

import ast
import asyncio
import ctypes
import io
import itertools
import linecache
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from types import CodeType
from typing import Any, TextIO, cast

from orchestrator.sandbox.output import OutputFold
from orchestrator.seams import OutputSink
from orchestrator.tasks import TaskSet
from orchestrator.values import CellResult, CellStatus, CodeError, DeathCause, OutputStream, Slot

Namespace = dict[str, Any]
Write = Callable[[OutputStream, str], None]

# Which cell a write to sys.stdout belongs to: threads of parallel sandboxes share the one sys.stdout of the process.
_writer: ContextVar[Write | None] = ContextVar("fake_cell_writer", default=None)


class _Router(io.TextIOBase):
    """A `sys.stdout` that sends what a cell writes to that cell, and all else where it went before."""

    def __init__(self, stream: OutputStream, outer: TextIO) -> None:
        self.stream = stream
        self.outer = outer

    def write(self, text: str) -> int:
        write = _writer.get()
        if write is None:
            return self.outer.write(text)
        write(self.stream, text)
        return len(text)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        if _writer.get() is None:
            self.outer.flush()


class _Routing:
    """Puts the routers in place while at least one sandbox is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                sys.stdout = cast(TextIO, _Router(OutputStream.STDOUT, sys.stdout))
                sys.stderr = cast(TextIO, _Router(OutputStream.STDERR, sys.stderr))

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for name in ("stdout", "stderr"):
                    current = getattr(sys, name)
                    if isinstance(current, _Router):
                        setattr(sys, name, current.outer)


routing = _Routing()


class CellThread:
    """One cell in a daemon thread. `ended` is called in that thread, once, when the code has ended by whatever way."""

    def __init__(
        self, code: str, file_name: str, namespace: Namespace, write: Write, ended: Callable[[], None]
    ) -> None:
        self._code = code
        self._file_name = file_name
        self._namespace = namespace
        self._write = write
        self._ended = ended
        self._thread = threading.Thread(target=self._main, name=file_name, daemon=True)
        self.error: CodeError | None = None
        self.interrupted = False

    def start(self) -> None:
        self._thread.start()

    def interrupt(self) -> None:
        """Raises KeyboardInterrupt at the code's next bytecode; a blocking call into C is not reached."""
        ident = self._thread.ident
        if ident is not None and self._thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))

    def _main(self) -> None:
        _writer.set(self._write)
        try:
            self._execute()
        except BaseException as error:
            self.interrupted = isinstance(error, KeyboardInterrupt)
            self.error = self._describe(error)
        finally:
            self._ended()

    def _execute(self) -> None:
        # The traceback shows the cell's own lines only when linecache knows them.
        linecache.cache[self._file_name] = (len(self._code), None, self._code.splitlines(True), self._file_name)
        body, shown = _compile(self._code, self._file_name)
        exec(body, self._namespace)
        if shown is not None:
            value = eval(shown, self._namespace)
            if value is not None:
                self._write(OutputStream.STDOUT, repr(value) + "\n")

    def _describe(self, error: BaseException) -> CodeError:
        frames = traceback.extract_tb(error.__traceback__)
        own = list(itertools.dropwhile(lambda frame: frame.filename != self._file_name, frames))
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(own)] if own else []
        return CodeError(
            type_name=type(error).__name__,
            message=str(error),
            traceback="".join([*lines, *traceback.format_exception_only(error)]),
        )


def _compile(code: str, file_name: str) -> tuple[CodeType, CodeType | None]:
    """The cell's statements, and its last expression, if it ends in one, for the REPL to show."""
    module = ast.parse(code, file_name)
    last = module.body[-1] if module.body else None
    if not isinstance(last, ast.Expr):
        return compile(module, file_name, "exec"), None
    module.body.pop()
    return compile(module, file_name, "exec"), compile(ast.Expression(last.value), file_name, "eval")


class RunningCell:
    """Its output, its clock, its questions. Only `write`, `ended` and `ask` are called in the cell's own thread."""

    def __init__(self, caps: tuple[int, int], on_output: OutputSink | None, loop: asyncio.AbstractEventLoop) -> None:
        self._folds = {stream: OutputFold(stream, *caps) for stream in OutputStream}
        self._caps = caps
        self._written = {stream: bytearray() for stream in OutputStream}
        self._on_output = on_output
        self._loop = loop
        self._end = asyncio.Event()
        self._changed = asyncio.Event()
        self._questions = TaskSet()
        self._started = time.monotonic()
        self._waited = 0.0
        self._waiting_since: float | None = None
        self.stopped: DeathCause | None = None
        self.failure: Exception | None = None

    def write(self, stream: OutputStream, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self._tell(self._wrote, stream, data)

    def ended(self) -> None:
        self._tell(self._end_now)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: this thread was left behind, and nobody listens any more.
            if not self._loop.is_closed():
                raise

    def ask(self, question: Coroutine[Any, Any, Sequence[Slot]]) -> Sequence[Slot]:
        future: Future[Sequence[Slot]] = Future()
        self._loop.call_soon_threadsafe(self._asked, question, future)
        try:
            return future.result()
        except CancelledError:
            raise KeyboardInterrupt from None

    def stop(self, cause: DeathCause) -> None:
        if self.stopped is None and not self._end.is_set():
            self.stopped = cause
            self._changed.set()

    def fail(self, error: Exception) -> None:
        """The one who answers has failed."""
        self.failure = self.failure or error
        self._changed.set()

    async def cancel_questions(self) -> None:
        """Cancels and awaits them, and those that are asked from now on."""
        await self._questions.close()

    async def wait_for_end_or_stop(self, limit_s: float) -> None:
        """Until the code ends or is told to stop, or has run for so long; waiting for answers does not count."""
        while not self._end.is_set() and self.stopped is None and self.failure is None:
            self._changed.clear()
            left = None if len(self._questions) else limit_s - self._running_s()
            if left is not None and left <= 0:
                self.stop(DeathCause.TIMED_OUT)
                return
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the event.
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def wait(self, seconds: float) -> bool:
        """Whether the code ends in that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._end.wait()
        except TimeoutError:
            return False
        return True

    def result(self, status: CellStatus, **outcome: Any) -> CellResult:
        captured = {stream: fold.finish(len(self._written[stream])) for stream, fold in self._folds.items()}
        return CellResult(
            status=status,
            stdout=captured[OutputStream.STDOUT],
            stderr=captured[OutputStream.STDERR],
            seconds=self._running_s(),
            **outcome,
        )

    def _wrote(self, stream: OutputStream, data: bytes) -> None:
        if self._end.is_set():
            return
        written = self._written[stream]
        head, _ = self._caps
        piece = data[: max(0, head - len(written))]
        if piece:
            self._pass_on(stream, len(written), piece)
        written += data

    def _pass_on(self, stream: OutputStream, offset: int, data: bytes) -> None:
        chunk = self._folds[stream].add(offset, data)
        if chunk is not None and self._on_output is not None:
            self._on_output(chunk)

    def _end_now(self) -> None:
        head, tail = self._caps
        for stream, written in self._written.items():
            start = max(head, len(written) - tail)
            if len(written) > start:
                self._pass_on(stream, start, bytes(written[start:]))
        self._end.set()
        self._changed.set()

    def _asked(self, question: Coroutine[Any, Any, Sequence[Slot]], future: Future[Sequence[Slot]]) -> None:
        if not len(self._questions):
            self._waiting_since = time.monotonic()
        task = self._questions.spawn(question, "answer for a fake cell")
        task.add_done_callback(lambda _: self._answered(task, future))
        self._changed.set()

    def _answered(self, task: asyncio.Task[Sequence[Slot]], future: Future[Sequence[Slot]]) -> None:
        if not len(self._questions) and self._waiting_since is not None:
            self._waited += time.monotonic() - self._waiting_since
            self._waiting_since = None
        self._changed.set()
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def _running_s(self) -> float:
        now = time.monotonic()
        waiting = now - self._waiting_since if self._waiting_since is not None else 0.0
        return now - self._started - self._waited - waiting
