"""The conversation with one guest: who may say what when, and what becomes of the sandbox when it does not.

Knows nothing of gRPC: `guest_server` carries the messages in and out. States: waiting for the guest, attached, open,
lost. Lost is for good, and has one cause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, TypeVar, assert_never

from orchestrator.errors import LossCause, SandboxLost
from orchestrator.protocol.rlm.guest.v1 import guest_pb2 as pb
from orchestrator.sandbox import pace, wire, wire_out
from orchestrator.sandbox.alarm import Alarm
from orchestrator.sandbox.asks import AskNotNow
from orchestrator.sandbox.cell import OutOfTime, RunningCell, check_time_limit
from orchestrator.sandbox.endings import why_it_hung_up
from orchestrator.sandbox.engine import ContainerExit
from orchestrator.sandbox.files import FileTransfers
from orchestrator.sandbox.hearing import Hearing
from orchestrator.sandbox.output import OutputOverrun
from orchestrator.seams import Answer, OutputSink
from orchestrator.tasks import TaskSet
from orchestrator.values import CellResult, ContextInfo

logger = logging.getLogger(__name__)
T = TypeVar("T")

_BACKSTOP_MARGIN_S = 15.0
_EXIT_WAIT_S = 5.0
_MAX_UNSENT = 256  # messages; a guest that waits for what it is told leaves next to none


@dataclass(frozen=True, slots=True)
class SessionLimits:
    cell_timeout_s: float
    cell_grace_s: float
    silence_timeout_s: float
    output_head_bytes: int
    output_tail_bytes: int


class _State(Enum):
    EXPECTED = auto()
    GREETING = auto()  # a stream is there, its Hello is not
    ATTACHED = auto()
    OPENING = auto()
    OPEN = auto()
    LOST = auto()


# The guest does what it is told in the order in which it is told: a cell need not wait for Opened.
_TAKES_CELLS = (_State.OPENING, _State.OPEN)


class Outlet(Protocol):
    """The way to the guest. No method waits."""

    @property
    def unsent(self) -> int:
        """How many messages the guest has not taken yet."""

    def send(self, message: bytes) -> None:
        """Sends a message of the stream."""

    def end(self) -> None:
        """Ends the stream, after all that was sent."""


class GuestSession:
    """`exit_of` tells how the container ended, waiting for that a little; None when it has not."""

    def __init__(
        self, name: str, limits: SessionLimits, exit_of: Callable[[float], Awaitable[ContainerExit | None]]
    ) -> None:
        self.name = name
        self._limits = limits
        self._exit_of = exit_of
        self._state = _State.EXPECTED
        self._loss: SandboxLost | None = None
        self._explaining = False
        self._cell: RunningCell | None = None
        self._cells = 0
        self._answer: Answer | None = None
        self._loop = asyncio.get_running_loop()
        self._attached: asyncio.Future[None] = self._loop.create_future()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._lost_now: asyncio.Future[None] = self._loop.create_future()
        self._files = FileTransfers(name, self._send)
        self._tasks = TaskSet()
        self._hearing = Hearing(limits.silence_timeout_s, self._silent)
        self._alarm = Alarm()
        self.pace = pace.Account(lambda text: self.lose(LossCause.PROTOCOL, text))
        self._outlet: Outlet | None = None
        self.python_version = ""

    @property
    def usable(self) -> bool:
        return self._state in (_State.ATTACHED, _State.OPEN) and not self._explaining

    @property
    def over(self) -> bool:
        """Whether it is lost."""
        return self._loss is not None

    # --- the host's side ---

    async def attached(self) -> None:
        """Waits for the guest's Hello. Raises `SandboxLost`."""
        await asyncio.shield(self._attached)

    @property
    def heard_lately(self) -> bool:
        """Whether the guest has said anything within the time of two heartbeats, and a little."""
        return self._hearing.lately

    def begin(self, info: ContextInfo | None, file_name: str, answer: Answer | None) -> None:
        """Gives the sandbox its work, once; cells may follow at once. Raises `SandboxLost`."""
        self._check_usable()
        self._answer = answer
        self._open(info, file_name, "context")

    async def opened(self) -> None:
        """Waits until the guest has taken its work. Raises `SandboxLost`."""
        await asyncio.shield(self._opened)

    async def add_context(self, info: ContextInfo, file_name: str, variable: str) -> None:
        """See `seams.Sandbox.add_context`."""
        self._check_usable()
        if self._state not in _TAKES_CELLS or self._cell is not None:
            raise RuntimeError("a context is added between cells")
        await self.opened()
        self._opened = self._loop.create_future()
        self._open(info, file_name, variable)
        await self.opened()

    def _open(self, info: ContextInfo | None, file_name: str, variable: str) -> None:
        self._state = _State.OPENING
        self._send(
            wire_out.open_message(
                info,
                file_name,
                queries_allowed=self._answer is not None,
                head_bytes=self._limits.output_head_bytes,
                tail_bytes=self._limits.output_tail_bytes,
                variable=variable,
            )
        )

    async def write_file(self, path: str, data: bytes) -> None:
        """See `seams.Sandbox.write_file`."""
        self._check_usable()
        await self._transfer(self._files.write(path, data))

    async def read_file(self, path: str) -> bytes:
        """See `seams.Sandbox.read_file`."""
        self._check_usable()
        return await self._transfer(self._files.read(path))

    async def lost(self) -> SandboxLost:
        """See `seams.Sandbox.lost`."""
        await asyncio.shield(self._lost_now)
        return self._lost()

    async def run(self, code: str, on_output: OutputSink | None, time_limit_s: float | None) -> CellResult:
        """See `seams.Sandbox.run`."""
        check_time_limit(time_limit_s)
        self._check_usable()
        if self._state not in _TAKES_CELLS or self._cell is not None:
            raise RuntimeError("one cell at a time, and only after open")
        limits = self._limits
        limit = limits.cell_timeout_s if time_limit_s is None else time_limit_s
        self._cells += 1
        caps = limits.output_head_bytes, limits.output_tail_bytes
        cell = RunningCell(self._cells, *caps, on_output, self._answer, limit, self._alarm)
        self._cell = cell
        self._send(wire_out.run_message(cell.number, code, limit, limits.cell_grace_s))
        try:
            return await cell.wait(limit + 2 * limits.cell_grace_s + _BACKSTOP_MARGIN_S)
        except OutOfTime:
            self.lose(LossCause.UNRESPONSIVE, f"a cell with a limit of {limit:g} s neither ended nor was killed")
            raise self._lost() from None
        except BaseException:
            # Lost; or else cancelled, or the one who answers failed: then the cell goes on inside, and nothing can be
            # run after it.
            self._send(wire_out.interrupt_message(cell.number))
            self.lose(LossCause.CLOSED, "its run was given up")
            raise
        finally:
            self._cell = None
            await cell.close()

    async def interrupt(self) -> None:
        if self._cell is not None and self._loss is None:
            self._send(wire_out.interrupt_message(self._cell.number))

    async def _transfer(self, transfer: Coroutine[Any, Any, T]) -> T:
        try:
            return await transfer
        except TimeoutError:
            self.lose(LossCause.UNRESPONSIVE, "the guest did not answer for a file")
            raise self._lost() from None

    def retire(self) -> bool:
        """Ends it for its owner. Returns whether it was at rest, with no cell running: then its guest is not told yet.

        An idle guest that is told would go at once, and the engine would clear up after it at once.
        """
        at_rest = self._loss is None and not self._explaining and self._cell is None
        if at_rest:
            self._outlet = None
        self.lose(LossCause.CLOSED, "")
        return at_rest

    async def close(self) -> None:
        self.lose(LossCause.CLOSED, "")
        await self._tasks.close()

    def when_failed(self, do: Callable[[], object]) -> None:
        """Calls it when the sandbox is lost by other than its owner's own will."""

        def lost(_: asyncio.Future[None]) -> None:
            if self._loss is not None and self._loss.cause is not LossCause.CLOSED:
                do()

        self._lost_now.add_done_callback(lost)

    def lose(self, cause: LossCause, detail: str) -> None:
        """Ends the sandbox; the first cause stands."""
        if self._loss is not None:
            return
        loss = self._loss = SandboxLost(self.name, cause, detail)
        self._state = _State.LOST
        if cause is not LossCause.CLOSED:
            logger.info("%s", loss)
        self._hearing.stop()
        if self._outlet is not None:
            self._outlet.end()
        for waiter in (self._attached, self._opened):
            if not waiter.done():
                waiter.set_exception(loss)
                waiter.exception()  # seen: nobody may be waiting
        if self._cell is not None:
            self._cell.fail(loss)
        self._files.lose(loss)
        self._alarm.close()
        self._lost_now.set_result(None)

    # --- the guest's side ---

    @property
    def expects_stream(self) -> bool:
        """Whether a stream that begins now would be the one; there is only ever one."""
        return self._state is _State.EXPECTED

    def stream_began(self, outlet: Outlet) -> None:
        """The stream that was expected; what the host has to say goes to `outlet`."""
        self._outlet = outlet
        self._state = _State.GREETING
        self._hearing.begin()

    def heard(self) -> None:
        """Something came on the stream's connection, whatever it is."""
        self._hearing.heard()

    def reads_later(self, seconds: float) -> None:
        """A connection of the guest is not read for so long."""
        if self._cell is not None:
            self._cell.paused_for(seconds)

    def received(self, data: bytes) -> None:
        """Takes a message as it came; one that breaks the protocol ends the sandbox."""
        if self._loss is not None:
            return
        self.pace.charge(pace.MESSAGE_S)
        try:
            self._take(wire.read_message(data))
        except (wire.ProtocolViolation, OutputOverrun) as error:
            self.lose(LossCause.PROTOCOL, str(error))

    def stream_ended(self) -> None:
        """The guest hung up, which it never does of its own accord: how the container ended says why."""
        if self._loss is None and not self._explaining:
            self._explaining = True
            self._tasks.spawn(self._explain(), f"{self.name}: why the stream ended")

    def askable(self) -> RunningCell:
        """The cell that asks. Raises `AskRefused` when nothing can be asked now."""
        if self._cell is None or self._answer is None or self._loss is not None:
            raise AskNotNow("a question can only be asked while a cell runs")
        return self._cell

    def _take(self, message: wire.GuestMessage) -> None:
        if self._state is _State.GREETING and not isinstance(message, wire.Hello):
            raise wire.ProtocolViolation("a first message that is not Hello")
        match message:
            case wire.Hello():
                self._greeted(message)
            case wire.Heartbeat():
                self._hearing.heartbeat()
            case wire.Opened():
                if self._state is not _State.OPENING:
                    raise wire.ProtocolViolation("Opened without an Open")
                self._state = _State.OPEN
                self._opened.set_result(None)
            case wire.Output():
                self._current_cell(message.cell).wrote(message)
            case wire.CellEnded():
                cell = self._current_cell(message.cell)
                for output in message.outputs:
                    self._current_cell(output.cell).wrote(output)
                cell.ended(message)
            case wire.FileEnded():
                self._files.ended(message)
            case wire.Stopping():
                self._current_cell(message.cell).asks.end()
            case wire.TimeCheck():
                self._tell_time(self._current_cell(message.cell))
            case unreachable:
                assert_never(unreachable)

    def _greeted(self, hello: wire.Hello) -> None:
        if self._state is not _State.GREETING:
            raise wire.ProtocolViolation("a second Hello")
        if hello.protocol_version != wire.PROTOCOL_VERSION:
            raise wire.ProtocolViolation(
                f"the image speaks protocol {hello.protocol_version}, this host {wire.PROTOCOL_VERSION}: "
                "rebuild the image (make image)"
            )
        self.python_version = hello.python_version
        self._state = _State.ATTACHED
        self._attached.set_result(None)

    def _tell_time(self, cell: RunningCell) -> None:
        if self._outlet is not None and self._outlet.unsent > _MAX_UNSENT:
            raise wire.ProtocolViolation("a flood of time checks, whose answers are not read")
        self._send(wire_out.waited_message(cell.number, cell.waits.guest_excused_s, cell.waits.now))

    def _current_cell(self, number: int) -> RunningCell:
        if self._cell is None or self._cell.number != number:
            raise wire.ProtocolViolation("a message about a cell that does not run")
        return self._cell

    async def _explain(self) -> None:
        try:
            ended = await self._exit_of(_EXIT_WAIT_S)
        except Exception as error:
            logger.debug("the engine could not say how %s ended", self.name, exc_info=error)
            self.lose(LossCause.EXITED, "its connection ended, and the engine could not say why")
            return
        self.lose(*why_it_hung_up(ended))

    def _silent(self, seconds: float) -> None:
        self.lose(LossCause.SILENT, f"not a word for {seconds:.0f} s")

    def _send(self, message: pb.AttachResponse) -> None:
        if self._loss is None and self._outlet is not None:
            self._outlet.send(message.SerializeToString())

    def _check_usable(self) -> None:
        if self._loss is not None:
            raise self._lost()

    def _lost(self) -> SandboxLost:
        loss = self._loss
        assert loss is not None
        # A new one each time: an exception that is raised again keeps the traceback and context of before.
        return SandboxLost(loss.name, loss.cause, loss.detail)
