"""What the worker does at the agent's word: takes names in, runs cells, tells how they ended."""

from __future__ import annotations

import os

from guest_frames import FrameError, Message
from worker_asks import Asks
from worker_cells import CellResult, Cells
from worker_channel import EXIT_CUT_OFF, Channel, Command
from worker_contexts import ContextFile, Contexts
from worker_output import Streams
from worker_queries import query_functions


class Session:
    """Serves on the main thread, where signals arrive and where code expects to run."""

    def __init__(self, channel: Channel, asks: Asks, contexts: Contexts, cells: Cells, streams: Streams) -> None:
        self._channel = channel
        self._asks = asks
        self._contexts = contexts
        self._cells = cells
        self._streams = streams
        self._queries = False  # whether there are functions to ask with

    def serve(self) -> None:
        """Never returns: the channel ends the process."""
        while True:
            command = self._channel.next_command()
            match command.message["op"]:
                case "open":
                    self._open(command.message)
                case "cell":
                    self._run(command)

    def _open(self, message: Message) -> None:
        if message["queries"] and not self._queries:
            # Once: the code may have given some of these names to variables of its own since.
            names = query_functions(self._asks)
            self._cells.teach(names.taught)
            self._cells.offer(names.offered)
            self._queries = True
        self._streams.set_live(message["head"])
        for fields in message["contexts"]:
            self._contexts.add(ContextFile(**fields))
        self._channel.send({"op": "opened"})

    def _run(self, command: Command) -> None:
        number = command.message["cell"]
        self._streams.begin_cell()
        self._asks.begin_cell()
        result = self._cells.run(number, command.data.decode("utf-8", "replace"))
        self._streams.end_cell()
        if os.getpid() != self._channel.process:
            os._exit(0)  # a forked child that ran on to the end of the cell
        self._asks.end_cell()
        self._report(number, result)

    def _report(self, number: int, result: CellResult) -> None:
        error, final = result.error, result.final
        texts: list[bytes] = []
        message: Message = {
            "op": "ended",
            "cell": number,
            "status": "error" if error else "ok",
            "error": None,
            "final": None,
        }
        if error is not None:
            parts = [part.encode("utf-8", "replace") for part in (error.type_name, error.message, error.traceback)]
            message["error"] = [len(part) for part in parts]
            texts += parts
        if final is not None:
            message["final"] = [len(final.text), final.type_name, final.length]
            texts.append(final.text)
        message["variables"] = result.variables
        try:
            self._channel.send(message, *texts)
        except (FrameError, OSError):
            os._exit(EXIT_CUT_OFF)
