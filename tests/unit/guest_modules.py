"""The guest's modules, which import one another by bare name, and a real worker process to drive without an agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "sandbox_image" / "generated"))
sys.path.insert(0, str(Path(__file__).parents[2] / "sandbox_image" / "guest"))

import agent_asks as agent_asks
import agent_clock as agent_clock
import agent_files as agent_files
import agent_grpc as agent_grpc
import agent_hpack as agent_hpack
import agent_http2 as agent_http2
import agent_link as agent_link
import agent_loop as agent_loop
import agent_processes as agent_processes
import agent_session as agent_session
import agent_settings as agent_settings
import agent_worker as agent_worker
import guest_frames as guest_frames
import guest_messages as guest_messages
import worker_contexts as worker_contexts
import worker_describe as worker_describe
import worker_queries as worker_queries
import worker_subcalls as worker_subcalls
import worker_tracebacks as worker_tracebacks

# Answers an ask: the questions as (prompt, kind, data); the result as (reason, text), one a question.
Answer = Callable[[list[tuple[str, str, bytes]]], list[tuple[str, str]]]


def reply_frame(ask: dict[str, Any], *outcomes: tuple[str, str]) -> bytes:
    """The frame that answers an ask: a reason and a text for each of its questions."""
    slots = [(reason, text.encode()) for reason, text in outcomes]
    reply = {"op": "reply", "id": ask["id"], "slots": [[reason, len(text)] for reason, text in slots]}
    return guest_frames.encode(reply, *(text for _, text in slots))


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
    """A worker whose agent is the test. Output must fit into a pipe."""

    def __init__(self) -> None:
        settings = agent_settings.Settings({"RLM_ADDRESS": "unix:/nowhere/socket"})
        self._process = agent_processes.WorkerProcess.start(settings, os.environ)
        self._process.control.setblocking(True)
        self._frames: list[tuple[dict[str, Any], bytes]] = []
        self._decoder = guest_frames.FrameDecoder()
        self._cell = 0
        self.asked: list[list[tuple[str, str, bytes]]] = []

    def close(self) -> None:
        """Ends the worker, which is reaped."""
        self._process.control.shutdown(2)
        os.waitpid(self._process.pid, 0)
        self._process.close()

    def open(self, *contexts: dict[str, Any], queries: bool = True) -> None:
        """`contexts`: the fields of a ContextFile each."""
        self.send({"op": "open", "queries": queries, "head": 20_000, "contexts": contexts})
        assert self.receive()[0]["op"] == "opened"

    def run(self, code: str, answer: Answer | None = None) -> Report:
        """Runs a cell and answers what it asks."""
        self.start(code)
        while True:
            message, data = self.receive()
            if message["op"] == "ask":
                self._answer(message, data, answer or (lambda asked: [("", prompt) for prompt, _, _ in asked]))
            elif message["op"] == "ended":
                return self.report(message, data)

    def start(self, code: str) -> int:
        """Sends a cell and returns its number."""
        self._cell += 1
        self.send({"op": "cell", "cell": self._cell}, code.encode())
        return self._cell

    def interrupt(self) -> None:
        """Interrupts the cell that runs, or hits nothing."""
        self._process.interrupt()

    def send(self, message: dict[str, Any], *data: bytes) -> None:
        """Sends one frame."""
        self._process.control.sendall(guest_frames.encode(message, *data))

    def send_bytes(self, data: bytes) -> None:
        """Sends a frame, a part of one or several."""
        self._process.control.sendall(data)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The worker's next frame."""
        while not self._frames:
            received = self._process.control.recv(1 << 18)
            assert received, "the worker has gone"
            self._frames += self._decoder.feed(received)
        return self._frames.pop(0)

    def _answer(self, message: dict[str, Any], data: bytes, answer: Answer) -> None:
        sizes = [size for prompt, _, context in message["questions"] for size in (prompt, context)]
        pieces = guest_frames.split(data, sizes)
        kinds = [kind for _, kind, _ in message["questions"]]
        asked = [(pieces[2 * n].decode(), kind, pieces[2 * n + 1]) for n, kind in enumerate(kinds)]
        self.asked.append(asked)
        self.send_bytes(reply_frame(message, *answer(asked)))

    def report(self, message: dict[str, Any], data: bytes) -> Report:
        """Reads the message of a cell's end."""
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

    @staticmethod
    def _drain(descriptor: int) -> str:
        try:
            return os.read(descriptor, 1 << 20).decode("utf-8", "replace")
        except BlockingIOError:
            return ""
