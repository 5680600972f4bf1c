"""The guest's modules, which import one another by bare name, and a real worker process to drive without an agent."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "sandbox_image" / "generated"))
sys.path.insert(0, str(Path(__file__).parents[2] / "sandbox_image" / "guest"))

import agent_clock as agent_clock
import agent_dial as agent_dial
import agent_files as agent_files
import agent_grpc as agent_grpc
import agent_http2 as agent_http2
import agent_link as agent_link
import agent_loop as agent_loop
import agent_processes as agent_processes
import agent_session as agent_session
import agent_settings as agent_settings
import agent_worker as agent_worker
import guest_frames as guest_frames
import guest_grpc as guest_grpc
import guest_hpack as guest_hpack
import guest_messages as guest_messages
import worker_asks as worker_asks
import worker_calls as worker_calls
import worker_contexts as worker_contexts
import worker_describe as worker_describe
import worker_http2 as worker_http2
import worker_queries as worker_queries
import worker_subcalls as worker_subcalls
import worker_tracebacks as worker_tracebacks

from tests.unit.asks_server import Asked, AsksServer, GivenUp, Outcome, Question

# Answers the questions of a call: one outcome each.
Answer = Callable[[list[Question]], list[Outcome]]


class Told(NamedTuple):
    """A frame of the control socket."""

    message: dict[str, Any]
    data: bytes


@dataclass
class Report:
    """How a cell ended, and what it wrote."""

    status: str = ""
    error: tuple[str, str, str] = ("", "", "")  # class, message, traceback
    final: str | None = None
    final_type: str = ""
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    stdout: str = ""
    stderr: str = ""


class DrivenWorker:
    """A worker whose agent, and whose host, is the test. Output must fit into a pipe."""

    def __init__(self) -> None:
        settings = agent_settings.Settings({"RLM_ADDRESS": "unix:/nowhere/socket"})
        ours, theirs = socket.socketpair()
        self._process = agent_processes.WorkerProcess.start(settings, os.environ, theirs)
        self._process.control.setblocking(True)
        self._decoder = guest_frames.FrameDecoder()
        self._events: deque[Asked | GivenUp | Told] = deque()
        self._exit_status: int | None = None
        self._cell = 0
        self.asks = AsksServer(ours)
        self.asked: list[list[Question]] = []
        self.given_up: set[int] = set()  # streams of calls

    def close(self) -> None:
        """Ends the worker, which is reaped."""
        self._process.control.shutdown(2)
        self.asks.hang_up()
        self.exit_status()
        self._process.close()
        self.asks.close()

    def exit_status(self) -> int:
        """Waits for the worker's end."""
        if self._exit_status is None:
            self._exit_status = os.waitstatus_to_exitcode(os.waitpid(self._process.pid, 0)[1])
        return self._exit_status

    def open(self, *contexts: dict[str, Any], queries: bool = True) -> None:
        """`contexts`: the fields of a ContextFile each."""
        self.send({"op": "open", "queries": queries, "head": 20_000, "contexts": contexts})
        assert self._told().message["op"] == "opened"

    def run(self, code: str, answer: Answer | None = None) -> Report:
        """Runs a cell and answers what it asks: each prompt with itself, unless told otherwise."""
        self.start(code)
        while True:
            match self.receive():
                case Asked() as call:
                    self.asked.append(call.questions)
                    call.answer(*(answer or _echo)(call.questions))
                case Told(message, data):
                    return self.report(message, data)

    def start(self, code: str) -> int:
        """Sends a cell and returns its number."""
        self._cell += 1
        self.send({"op": "cell", "cell": self._cell}, code.encode())
        return self._cell

    def calls(self, count: int) -> dict[str, Asked]:
        """The worker's next calls, of one question each, by their prompts."""
        found = {}
        for _ in range(count):
            call = self.receive()
            assert isinstance(call, Asked)
            found[call.prompt] = call
        return found

    def end(self) -> Report:
        """Waits for the end of the cell that runs, which asks nothing more; it may give up calls."""
        return self.report(*self._told())

    def written(self) -> str:
        """Waits until something is written to descriptor 1, and answers no call meanwhile."""
        while not self._poll(self._process.stdout):
            pass
        return self._drain(self._process.stdout)

    def interrupt(self) -> None:
        """Interrupts the cell that runs, or hits nothing."""
        self._process.interrupt()

    def send(self, message: dict[str, Any], *data: bytes) -> None:
        """Sends one frame on the control socket."""
        self._process.control.sendall(guest_frames.encode(message, *data))

    def send_bytes(self, data: bytes) -> None:
        """Sends a frame, a part of one or several."""
        self._process.control.sendall(data)

    def receive(self) -> Asked | GivenUp | Told:
        """What the worker says next, on either connection; what it asked before the end of a cell comes before that."""
        while not self._events:
            if not self._poll(self._process.control.fileno()):
                continue
            received = self._process.control.recv(1 << 18)
            # After it: whatever the worker has asked before these frames is there to be read by now.
            self._take_asked()
            assert received or self._events, "the worker has gone"
            self._events += [Told(message, data) for message, data in self._decoder.feed(received)]
        event = self._events.popleft()
        if isinstance(event, GivenUp):
            self.given_up.add(event.stream)
        return event

    def report(self, message: dict[str, Any], data: bytes) -> Report:
        """Reads the message of a cell's end."""
        assert (message["op"], message["cell"]) == ("ended", self._cell)
        report = Report(status=message["status"])
        error, final = message["error"], message["final"]
        texts = [t.decode() for t in guest_frames.split(data, [*(error or ()), *([final[0]] if final else ())])]
        if error:
            report.error = (texts[0], texts[1], texts[2])
        if final:
            report.final, report.final_type = texts[-1], final[1]
        report.names = {name: (kind, size) for name, kind, size in message["variables"]}
        report.order = [name for name, _, _ in message["variables"]]
        report.stdout, report.stderr = self._drain(self._process.stdout), self._drain(self._process.stderr)
        return report

    def _told(self) -> Told:
        while not isinstance(event := self.receive(), Told):
            assert isinstance(event, GivenUp), event
        return event

    def _poll(self, descriptor: int) -> bool:
        """Waits for something to do on the connection of questions, and does it; returns whether this can be read."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not self.asks.ended:
            poll.register(self.asks, select.POLLIN | (select.POLLOUT if self.asks.has_unsent else 0))
        ready = [number for number, _ in poll.poll()]
        self._take_asked()
        return descriptor in ready

    def _take_asked(self) -> None:
        self.asks.receive()
        self._events += self.asks.events
        self.asks.events.clear()

    @staticmethod
    def _drain(descriptor: int) -> str:
        try:
            return os.read(descriptor, 1 << 20).decode("utf-8", "replace")
        except BlockingIOError:
            return ""


def _echo(asked: list[Question]) -> list[Outcome]:
    return [("", prompt) for prompt, _, _ in asked]
