"""sys.stdout and sys.stderr of the worker: descriptors 1 and 2, kept in order across cells."""

from __future__ import annotations

import fcntl
import io
import os
import sys
import threading
from typing import Any

_high_descriptor = 64
_cell_of_thread: dict[int, int] = {}  # of the work that a pool's thread does just now: the cell that it was given in
_cell = 0
_write = io.TextIOWrapper.write  # `super` looks it up anew for each piece that is printed


class CellStream(io.TextIOWrapper):
    """Text for one descriptor, which leaves out what threads of earlier cells write.

    Lines go out as they come while they are still streamed to the host; after that many characters in blocks, since
    the agent only counts them.
    """

    def __init__(self, descriptor: int, live_characters: int) -> None:
        self._descriptor = descriptor
        raw = io.FileIO(descriptor, "w", closefd=False)
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._live_characters = live_characters
        self._written = 0
        self._stale: dict[int, threading.Thread] = {}
        self.left_out = 0

    @property
    def name(self) -> str:
        return "<stdout>" if self._descriptor == 1 else "<stderr>"

    @property
    def mode(self) -> str:
        return "w"

    def write(self, text: str, /) -> int:
        """As `TextIOBase.write`."""
        if self._stale:
            thread = self._stale.get(threading.get_ident())
            # Identifiers are used again, so the thread itself has to be the one.
            stale = thread is not None and thread is threading.current_thread()
            if stale and _cell_of_thread.get(threading.get_ident()) != _cell:
                self.left_out += len(text)
                return len(text)
        self._written += len(text)
        if self._written > self._live_characters and self.line_buffering:
            self.reconfigure(line_buffering=False)
        return _write(self, text)

    def begin_cell(self, stale: dict[int, threading.Thread]) -> None:
        self._stale = stale
        self._written = self.left_out = 0
        if not self.line_buffering:
            self.reconfigure(line_buffering=True)


class Streams:
    """Both streams; whatever a cell does to them, the next cell finds them whole."""

    def __init__(self) -> None:
        self._kept = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _high_descriptor) for number in range(3)]
        self._live_characters = 1 << 16
        self._own = [CellStream(1, self._live_characters), CellStream(2, self._live_characters)]
        self._install()
        os.register_at_fork(before=self._flush)

    def set_live(self, characters: int) -> None:
        """How much of each stream is worth sending line by line."""
        self._live_characters = characters
        for stream in self._own:
            stream._live_characters = characters

    def begin_cell(self) -> None:
        """What runs now already, besides this thread, belongs to earlier cells; what a pool is given now does not."""
        global _cell
        _cell += 1
        _tag_the_work_of_pools()
        stale: dict[int, threading.Thread] = {}
        threads = threading.enumerate()
        if len(threads) > 1:
            me = threading.current_thread()
            stale = {thread.ident: thread for thread in threads if thread.ident and thread is not me}
        for stream in self._own:
            stream.begin_cell(stale)

    def end_cell(self) -> None:
        """Puts descriptors and streams back, and sends all that is still buffered."""
        left_out = self._own[0].left_out + self._own[1].left_out
        for number, kept in enumerate(self._kept):
            try:
                os.dup2(kept, number)
            except OSError:
                pass  # the code has closed every descriptor it could find: its output is lost, nothing else
        self._install()
        if left_out:
            self._own[1].write(f"[{left_out:,} characters printed by threads of earlier cells are left out]\n")
        self._flush()

    def _install(self) -> None:
        # First, since a wrapper that the code has put around one of them closes it when it goes.
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self._own  # type: ignore[misc]
        for place, stream in enumerate(self._own):
            if _is_closed(stream):
                self._own[place] = CellStream(place + 1, self._live_characters)
                sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self._own  # type: ignore[misc]

    def _flush(self) -> None:
        for stream in self._own:
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # closed by the code


def _is_closed(stream: CellStream) -> bool:
    try:
        return stream.closed
    except ValueError:  # its buffer was detached
        return True


def _tag_the_work_of_pools() -> None:
    """Lets a thread that a pool keeps from an earlier cell print for the cell that gives it work.

    The pools of `concurrent.futures`, and of asyncio with them, have no hook for this; where their insides differ, what
    such a thread prints is left out, as of any thread of an earlier cell.
    """
    item = getattr(sys.modules.get("concurrent.futures.thread"), "_WorkItem", None)
    if item is None or hasattr(item, "_rlm_run"):
        return
    given, run = item.__init__, item.run

    def tagged(self: Any, *arguments: Any, **keywords: Any) -> None:
        given(self, *arguments, **keywords)
        self._rlm_cell = _cell

    def run_tagged(self: Any) -> None:
        me = threading.get_ident()
        _cell_of_thread[me] = getattr(self, "_rlm_cell", 0)
        try:
            run(self)
        finally:
            _cell_of_thread.pop(me, None)

    item.__init__, item.run, item._rlm_run = tagged, run_tagged, run
