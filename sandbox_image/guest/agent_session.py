"""The agent's one conversation with the host: opens the stream, does what the host says, and ends with the stream."""

from __future__ import annotations

import sys

import guest_messages as pb
from agent_dial import dial
from agent_grpc import Channel
from agent_loop import Ended, Loop
from agent_processes import harden
from guest_grpc import OK

TYPE_CHECKING = False  # see agent_settings
if TYPE_CHECKING:
    import _socket

    from agent_processes import WorkerProcess
    from agent_settings import Settings

PROTOCOL_VERSION = 4
_PYTHON_VERSION = sys.version.split()[0]


def attach(settings: Settings, first: WorkerProcess) -> None:
    """Talks to the host until the stream ends.

    Raises:
        Ended or OSError: it ended otherwise than by the host's closing it.
        TimeoutError: the host was not there in time, or the longest lifetime is over.
    """
    Session(settings, dial(settings.address, settings.attach_timeout_s), first).run()


class Session:
    """The stream, and everything that is told on it."""

    def __init__(self, settings: Settings, connected: _socket.socket, first: WorkerProcess) -> None:
        self._settings = settings
        self._loop = loop = Loop()
        self._channel = Channel(loop, connected, self._broken)
        self._stream = self._channel.call(pb.ATTACH_METHOD, self._received, self._ended)
        self._send(pb.AttachRequest(hello=pb.Hello(protocol_version=PROTOCOL_VERSION, python_version=_PYTHON_VERSION)))
        # The host has heard of us, and has something to do meanwhile.
        try:
            harden()
        except OSError as error:
            raise Ended(f"this process cannot be closed to the code: {error}") from None
        from agent_cells import Cells

        self._cells = Cells(settings, loop, first, self._send)
        loop.call_later(settings.attach_timeout_s, self._check_greeted)
        loop.call_later(settings.heartbeat_s, self._beat)
        if settings.max_lifetime_s:
            loop.call_later(settings.max_lifetime_s, self._time_is_over)

    def run(self) -> None:
        """See `attach`."""
        self._loop.run()

    def _send(self, message: pb.AttachRequest) -> None:
        self._stream.send(message.encode())

    def _received(self, data: bytes) -> None:
        try:
            message = pb.AttachResponse.decode(data)
        except pb.DecodeError:
            raise Ended("the host sent what is no message") from None
        if message.run_cell is not None:
            self._cells.run(message.run_cell)
        elif message.waited is not None:
            self._cells.waited(message.waited)
        elif message.open is not None:
            self._cells.open(message.open)
        elif message.interrupt is not None:
            self._cells.interrupt(message.interrupt.cell)
        elif message.write_file is not None:
            from agent_files import write_file

            self._send(pb.AttachRequest(file_ended=write_file(self._settings.file_dir, message.write_file)))
        elif message.read_file is not None:
            from agent_files import read_file

            self._send(pb.AttachRequest(file_ended=read_file(self._settings.file_dir, message.read_file)))
        else:
            raise Ended("the host sent a message of no known kind")

    def _ended(self, status: int, details: str) -> None:
        if status != OK:
            raise Ended(f"the stream ended with status {status}: {details}")
        self._loop.stop()

    def _broken(self, reason: str) -> None:
        raise Ended(reason)

    def _check_greeted(self) -> None:
        if not self._channel.greeted:
            raise TimeoutError("who listens there does not speak")

    def _time_is_over(self) -> None:
        raise TimeoutError("the longest lifetime is over")

    def _beat(self) -> None:
        self._send(pb.AttachRequest(heartbeat=pb.Heartbeat()))
        self._loop.call_later(self._settings.heartbeat_s, self._beat)
