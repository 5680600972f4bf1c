"""A run on disk: JSON Lines, a header and then one `Record` a line, in order.

What merely repeats is left out (streamed text is in `ModelCallEnded`, printed text in `CellEnded`), so sequence numbers
grow but have gaps. Each line is flushed as it is written: after a `kill -9` all but the last line can be read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from orchestrator.errors import InvalidInput, RunNotReplayable
from orchestrator.events import CellPrinted, ModelTextStreamed, NoticeGiven, Record

FORMAT = "rlm-journal"
VERSION = 2
DEFAULT_MAX_BYTES = 1 << 30
_MAX_LINE_BYTES = 256 << 20
# What decoding raises: a text that is not UTF-8, and nesting too deep, are no MsgspecError.
_NOT_READABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Header(msgspec.Struct, frozen=True):
    format: str
    version: int
    package: str  # the version of this package that wrote it


class JournalWriter:
    """A sink that writes records to a file, made for its owner alone: it holds prompts and answers.

    It stops for good at `max_bytes` or when the disk refuses, and says so in `.problem`: a recording must never end
    a run.
    Raises `InvalidInput` when the file cannot be made.
    """

    def __init__(self, path: Path, *, package: str, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._written = 0
        self.problem = ""
        self._encoder = msgspec.json.Encoder()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, 0o600)  # one that was there before has kept its mode
        except OSError as error:
            raise InvalidInput(
                "--record", f"cannot write {path}: {error.strerror}.", "Name a file in a folder you may write to."
            ) from error
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        self._write(self._encoder.encode(Header(FORMAT, VERSION, package)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.problem = self.problem or self._describe(error)

    def __call__(self, record: Record) -> None:
        if self.problem or isinstance(record.event, ModelTextStreamed | CellPrinted):
            return
        line = self._encoder.encode(record)
        if self._written + len(line) > self._max_bytes:
            self.problem = f"the recording {self._path} reached its limit of {self._max_bytes:,} bytes and ends there."
            line = self._encoder.encode(msgspec.structs.replace(record, event=NoticeGiven(self.problem)))
        self._write(line)

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
            self._file.flush()
            self._written += len(line) + 1
        except OSError as error:
            self.problem = self.problem or self._describe(error)

    def _describe(self, error: OSError) -> str:
        return f"the recording {self._path} is incomplete: {error.strerror}."


class JournalReader:
    """Reads a journal back, record by record, strictly typed. `.cut` is true once a torn last line was met.

    Raises `RunNotReplayable`, naming the line and what to do, here and while it is iterated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cut = False
        try:
            with path.open("rb") as file:
                first = file.readline(_MAX_LINE_BYTES)
        except OSError as error:
            raise RunNotReplayable(f"{path} cannot be read: {error.strerror}.") from error
        self.header = self._read_header(first)

    def _read_header(self, line: bytes) -> Header:
        try:
            header = msgspec.json.decode(line, type=Header)
        except _NOT_READABLE as error:
            raise RunNotReplayable(
                f"{self._path}, line 1: this is not a recorded run ({error}). "
                "Give a file that `rlm ask --record` wrote."
            ) from error
        if header.format != FORMAT:
            raise RunNotReplayable(
                f"{self._path}, line 1: the format is {header.format!r}, not {FORMAT!r}. "
                "Give a file that `rlm ask --record` wrote."
            )
        if header.version != VERSION:
            raise RunNotReplayable(
                f"{self._path}, line 1: format version {header.version}, but this release reads version {VERSION}. "
                f"Read it with release {header.package}, which wrote it."
            )
        return header

    def __iter__(self) -> Iterator[Record]:
        self.cut = False
        decoder = msgspec.json.Decoder(Record)
        last_seq = 0
        with self._path.open("rb") as file:
            file.readline(_MAX_LINE_BYTES)
            number = 1
            while line := file.readline(_MAX_LINE_BYTES):
                number += 1
                try:
                    record = decoder.decode(line)
                except _NOT_READABLE as error:
                    if not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
                        self.cut = True
                        return
                    raise RunNotReplayable(
                        f"{self._path}, line {number}: not a valid record ({error}). "
                        "The file was changed after it was written; remove that line to read the rest."
                    ) from error
                if record.seq <= last_seq:
                    raise RunNotReplayable(
                        f"{self._path}, line {number}: record {record.seq} comes after record {last_seq}. "
                        "Two recordings were joined, or lines moved; use the original file."
                    )
                last_seq = record.seq
                yield record
