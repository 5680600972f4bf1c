"""Which worker is up, which cell runs in it, and what becomes of both."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

import guest_messages as pb
from agent_clock import CellClock
from agent_dial import dial
from agent_loop import Ended
from agent_processes import OutOfMemory, WorkerProcess, death_of, reap
from agent_worker import Worker, read_ended
from guest_frames import FrameError

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agent_loop import Loop
    from agent_output import Send
    from agent_processes import Death
    from agent_settings import Settings
    from guest_frames import Message

OUTPUT_CAP = 16 << 20  # bytes of a head or a tail, whatever the host asks for: all of it is in memory
MAX_CONTEXTS = 1000
MAX_FAILED_STARTS = 3  # workers in a row that died before they had a cell

REDIAL_S = 10.0  # for the host to take a new worker's connection

_KIND_NAMES = {pb.CONTEXT_KIND_TEXT: "text", pb.CONTEXT_KIND_JSON: "json", pb.CONTEXT_KIND_BYTES: "bytes"}
_CAUSES = {name.removeprefix("DEATH_CAUSE_").lower(): value for name, value in pb.DeathCause.items()}

# How a cell has ended that raised, by what it was interrupted for.
_STOPPED = {
    "": pb.CELL_STATUS_ERROR,
    "timed_out": pb.CELL_STATUS_TIMED_OUT,
    "interrupted": pb.CELL_STATUS_INTERRUPTED,
}


class Cells:
    """Methods are called from the event loop and never block; what happens is told with `send`.

    What ends the agent is raised: `Ended`, or the OSError of a worker that cannot be started.
    """

    def __init__(
        self,
        settings: Settings,
        loop: Loop,
        first: WorkerProcess,
        send: Callable[[pb.AttachRequest], None],
    ) -> None:
        """Takes over the first worker, which was started before there was an event loop."""
        self._settings = settings
        self._loop = loop
        self._send = send
        self._memory = OutOfMemory(settings)
        self._open: pb.Open | None = None
        self._head_bytes = self._tail_bytes = 0  # of a stream's output
        self._contexts: dict[str, dict[str, Any]] = {}
        self._opening = False
        self._last_cell = 0
        self._clock: CellClock | None = None  # there is one while a cell runs
        self._ending: pb.CellEnded | None = None  # takes the last pieces of output
        self._unreported: Death | None = None
        self._failed_starts = 0
        self._worker = self._adopt(first)
        self._loop.add_signal_handler(_signal.SIGCHLD, self._reap)
        self._reap()  # what has ended before there was a handler

    def open(self, message: pb.Open) -> None:
        """Sets the names; again, between cells, to add a context.

        Raises:
            Ended: a cell runs, or the context cannot be one.
        """
        if self._clock:
            raise Ended("Open came while a cell runs")
        contexts = []
        if message.context is not None:
            contexts.append(self._context(message.context))
        self._open = message
        self._head_bytes = min(message.output_head_bytes, OUTPUT_CAP)
        self._tail_bytes = min(message.output_tail_bytes, OUTPUT_CAP)
        self._opening = True
        self._send_open(contexts)

    def run(self, message: pb.RunCell) -> None:
        """Runs a cell.

        Raises:
            Ended: there was no Open, a cell runs already, or the number does not rise.
        """
        if self._open is None or self._clock or message.cell <= self._last_cell:
            raise Ended(f"RunCell {message.cell} came out of order")
        self._last_cell = message.cell
        if self._unreported:
            self._send(pb.AttachRequest(cell_ended=_dead(message.cell, self._unreported)))
            self._unreported = None
            return
        worker = self._worker
        worker.stdout.begin(self._head_bytes, self._tail_bytes)
        worker.stderr.begin(self._head_bytes, self._tail_bytes)
        worker.used = True
        worker.link.send(f'{{"op":"cell","cell":{message.cell}}}', message.code.encode())
        self._clock = CellClock(
            self._loop,
            message.time_limit_s,
            message.grace_s,
            worker.times,
            self._check_time,
            self._interrupt,
            worker.kill,
        )

    def interrupt(self, cell: int) -> None:
        """Stops that cell, if it is the one that runs."""
        if self._clock and cell == self._last_cell:
            self._clock.stop("interrupted")

    def waited(self, message: pb.Waited) -> None:
        """The host's answer to a TimeCheck; its cell may have ended meanwhile."""
        if self._clock and message.cell == self._last_cell:
            self._clock.told(message.seconds, message.waits)

    def on_worker_message(self, message: Message, data: bytes) -> None:
        """What the worker says. Malformed, it raises, and that is the worker's end."""
        match message["op"]:
            case "ended":
                self._on_ended(message, data)
            case "opened" if self._opening:
                self._opening = False
                self._send(pb.AttachRequest(opened=pb.Opened()))
            case "opened":
                pass  # a worker that took the place of a dead one
            case op:
                raise FrameError(f"unknown op {op[:40]}")

    def _on_ended(self, message: Message, data: bytes) -> None:
        if self._clock is None or message["cell"] != self._last_cell:
            raise FrameError("the end of a cell that does not run")
        ended = read_ended(message, data)
        if ended.status != pb.CELL_STATUS_OK:
            # What an interrupted cell raises is its own business: it may have handlers that raise something else.
            ended.status = _STOPPED[self._clock.stopped_for]
        self._finish(ended)

    def _finish(self, ended: pb.CellEnded) -> None:
        assert self._clock is not None
        ended.seconds = self._clock.finish()
        self._ending = ended
        ended.stdout_bytes = self._worker.stdout.end()
        ended.stderr_bytes = self._worker.stderr.end()
        self._clock = self._ending = None
        self._send(pb.AttachRequest(cell_ended=ended))

    def _check_time(self) -> None:
        self._send(pb.AttachRequest(time_check=pb.TimeCheck(cell=self._last_cell)))

    def _interrupt(self) -> None:
        self._send(pb.AttachRequest(stopping=pb.Stopping(cell=self._last_cell)))
        self._worker.interrupt()

    def _context(self, context: pb.Context) -> dict[str, Any]:
        name = context.file_name
        if not context.variable.isidentifier() or context.kind not in _KIND_NAMES:
            raise Ended("a context without a name or a kind")
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise Ended(f"not a plain file name: {name!r}")
        fields = {
            "variable": context.variable,
            "kind": _KIND_NAMES[context.kind],
            "path": os.path.join(self._settings.context_dir, name),
            "size": context.size_bytes,
        }
        if len(self._contexts) >= MAX_CONTEXTS:
            raise Ended(f"more than {MAX_CONTEXTS} contexts")
        self._contexts[context.variable] = fields
        return fields

    def _send_open(self, contexts: list[dict[str, Any]]) -> None:
        assert self._open is not None
        queries = self._open.queries_allowed
        self._worker.link.send({"op": "open", "queries": queries, "head": self._head_bytes, "contexts": contexts})

    def _adopt(self, process: WorkerProcess) -> Worker:
        return Worker(
            self._loop, process, self, self._output(pb.OUTPUT_STREAM_STDOUT), self._output(pb.OUTPUT_STREAM_STDERR)
        )

    def _output(self, stream: int) -> Send:
        def send(offset: int, data: bytes) -> None:
            output = pb.Output(cell=self._last_cell, stream=stream, offset=offset, data=data)
            if self._ending is not None:
                self._ending.outputs.append(output)
            else:
                self._send(pb.AttachRequest(output=output))

        return send

    def _reap(self) -> None:
        for pid, exit_code in reap():
            if pid == self._worker.pid:
                self._on_death(exit_code)

    def _on_death(self, exit_code: int) -> None:
        dead = self._worker
        death = death_of(exit_code, dead.killed_for, self._memory)
        dead.kill("exited")  # and what it has left behind
        if self._clock:
            self._finish(_dead(self._last_cell, death))
        elif dead.used:
            self._unreported = death
        self._failed_starts = 0 if dead.used else self._failed_starts + 1
        dead.close()
        if self._failed_starts > MAX_FAILED_STARTS:
            raise Ended(f"{self._failed_starts} workers in a row died before their first cell: {death}")
        try:
            asks = dial(self._settings.address, REDIAL_S)
        except TimeoutError as error:
            raise Ended(f"a new worker cannot ask the host: {error}") from None
        self._worker = self._adopt(WorkerProcess.start(self._settings, os.environ, asks))
        if self._open is not None:
            self._send_open(list(self._contexts.values()))


def _dead(cell: int, death: Death) -> pb.CellEnded:
    return pb.CellEnded(
        cell=cell,
        status=pb.CELL_STATUS_WORKER_DIED,
        worker_death=pb.WorkerDeath(cause=_CAUSES[death.cause], code=death.code),
    )
