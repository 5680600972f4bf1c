"""One worker as the agent sees it: its process, its socket, its output; and what it says, checked."""

from __future__ import annotations

from typing import Any, Protocol

import guest_messages as pb
from agent_link import Link
from agent_loop import Loop, Timer
from agent_output import Capture, Send
from agent_processes import ProcessorTimes, WorkerProcess, kill_everything
from guest_frames import FrameError, Message, split

EOF_GRACE_S = 1.0  # until a worker that has closed its socket must have ended

STATUSES = {"ok": pb.CELL_STATUS_OK, "error": pb.CELL_STATUS_ERROR}
MAX_NAME = 400  # bytes of a variable's or a class's name, or of a size
MAX_VARIABLES = 200


class WorkerOwner(Protocol):
    """Who is told what a worker says."""

    def on_worker_message(self, message: Message, data: bytes) -> None:
        """One frame; an exception of a wrong message ends the worker."""


class Worker:
    """A worker that has been started; it ends by `kill`, or by itself, and is then reaped by its owner."""

    def __init__(self, loop: Loop, process: WorkerProcess, owner: WorkerOwner, stdout: Send, stderr: Send) -> None:
        self._loop = loop
        self._process = process
        self._owner = owner
        self._timer: Timer | None = None
        self._listens = False  # it has said something, so it handles SIGINT
        self.times = ProcessorTimes(process.pid)
        self.link = Link(loop, process.control, self)
        self.stdout = Capture(loop, process.stdout, stdout)
        self.stderr = Capture(loop, process.stderr, stderr)
        self.killed_for = ""
        self.used = False  # a cell has run: there are variables to lose

    @property
    def pid(self) -> int:
        return self._process.pid

    def interrupt(self) -> None:
        """Interrupts the cell that runs. Lost on a worker that is only starting: SIGINT would be its death."""
        if self._listens:
            self._process.interrupt()

    def kill(self, cause: str) -> None:
        """Kills it and everything that it has started; the first cause counts."""
        self.killed_for = self.killed_for or cause
        kill_everything()

    def close(self) -> None:
        """After its end: lets go of all that belonged to it."""
        if self._timer:
            self._timer.cancel()
        self.link.close()
        self.stdout.close()
        self.stderr.close()
        self._process.close()

    def on_message(self, message: Message, data: bytes) -> None:
        self._listens = True
        self._owner.on_worker_message(message, data)

    def on_broken(self, reason: str, ended: bool) -> None:
        if ended:
            # Most likely it has died, and of what will be known in a moment.
            self._timer = self._loop.call_later(EOF_GRACE_S, self.kill, "protocol")
        else:
            self.kill("protocol")


def read_ended(message: Message, data: bytes) -> pb.CellEnded:
    """Reads a worker's report of a cell's end.

    Raises:
        FrameError, KeyError, TypeError or ValueError: it is malformed.
    """
    ended = pb.CellEnded(cell=_number(message["cell"]), status=STATUSES[message["status"]])
    error, final = message["error"], message["final"]
    sizes: list[int] = [*(error or ()), *([final[0]] if final else ())]
    texts = [text.decode() for text in split(data, sizes)]
    if error:
        type_name, text, traceback = texts[:3]
        ended.error = pb.CodeError(type_name=type_name, message=text, traceback=traceback)
    elif message["status"] != "ok":
        raise FrameError("a cell that failed without an error")
    if final:
        _, type_name, length = final
        ended.final_answer = pb.FinalAnswer(text=texts[-1], type_name=_short(type_name), length=_number(length))
    for name, type_name, size in message["variables"][:MAX_VARIABLES]:
        ended.variables.append(pb.Variable(name=_short(name), type_name=_short(type_name), size=_short(size)))
    return ended


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise FrameError("not a number in range")
    return value


def _short(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_NAME:
        raise FrameError("not a short text")
    value.encode()  # JSON can say a lone surrogate: that must be seen here, and not when the cell's end is sent
    return value
