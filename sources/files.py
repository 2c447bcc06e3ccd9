"""NDJSON files as a log: each file is a partition, each line a message, its number the offset.

Guarantees: the sequence of (offset, index, payload) of a file is the same however it is cut into
batches, stopped and resumed; a file may grow between runs and during one; a file of which anything
known has changed is refused, because offsets that already stand in the ledger would mean other
lines. What is known is the length and hash of its beginning, and where it was read up to.

Lines end with `\\n` only. An unterminated last line is read only if it is one JSON value (a writer
may be in the middle of it); otherwise it waits for its end. Reading ends at the end of the file, or
at the poll after `stop` was set; both leave a snapshot to go on from. A file that cannot be read
raises `TallyError`, which stops the flow: skipping lines would lose usage.
"""

from __future__ import annotations

import gzip
import os
import threading
import zlib
from io import BufferedIOBase, RawIOBase
from pathlib import Path
from typing import Final, NamedTuple

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from xxhash import xxh3_128_intdigest

from domain.envelope import BATCH_STARTS, is_json, split
from domain.ports import TallyError
from domain.values import RawBatch
from sources.paths import matching as matching
from sources.paths import named_folder, open_regular, register

TOPIC: Final = "file"
BLOCK_BYTES: Final = 1024 * 1024
"""How much is read at a time."""
BATCH_BLOCKS_MAX: Final = 16
"""A batch of long lines ends after so many blocks, although it has fewer rows than it may."""
LINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A longer line stops the flow: such a file is not NDJSON, and a line must fit into memory."""
HEAD_BYTES_MAX: Final = 64 * 1024
"""How much of a file's beginning is compared on resume."""


class FileState(NamedTuple):
    """How far a file is read; what Bytewax keeps as a snapshot of the partition."""

    offset_bytes: int = 0
    """In uncompressed bytes; just behind the last line read and its `\\n`."""
    lines: int = 0
    """Lines read: the next line's number, and the messages so far."""
    events: int = 0
    head_bytes: int = 0
    """Length of the beginning that `head_hash` stands for: at most 64 KiB, at most `offset_bytes`."""
    head_hash: int = 0
    """xxh3_128."""
    unterminated: bool = False
    """The last line read had no `\\n` yet: the file must go on with one, or not at all."""

    @property
    def next_offset(self) -> int:
        """Of the next message."""
        return self.lines


class FileSource(FixedPartitionedSource[RawBatch, FileState]):
    """The files that match a glob pattern (`**` for any depth; `.gz` files are unpacked).

    A path gets the next partition number when it is first seen, in byte order of the absolute path;
    the registry file records it for good. All checks that need no reading are made here, before a
    flow is built.

    Args:
        pattern: a glob pattern, or the path of one file.
        registry: the JSON file with each path's number; created, with its folder, if missing.
        batch_rows_max: lines in a batch, at least 1.
        stop: once set, every partition ends at its next poll.

    Raises:
        TallyError: nothing matches, a match is no readable regular file, or the registry is damaged.
    """

    def __init__(self, pattern: str, registry: Path, *, batch_rows_max: int, stop: threading.Event) -> None:
        if batch_rows_max < 1:
            raise ValueError(f"batch_rows_max must be at least 1, not {batch_rows_max}")
        self._folder = named_folder(pattern)
        paths = matching(pattern)
        numbers = register(paths, registry)
        self._partitions = {numbers[path]: path for path in paths}
        self._batch_rows_max = batch_rows_max
        self._stop = stop
        self._sizes = {number: os.path.getsize(path) for number, path in self._partitions.items()}
        self._open: dict[int, FilePartition] = {}

    @property
    def partitions(self) -> dict[int, str]:
        """The absolute path of each partition that this source reads, by number."""
        return dict(self._partitions)

    def list_parts(self) -> list[str]:
        return [str(number) for number in self._partitions]

    def share_read(self) -> float:
        """How much of the files is read, from 0 to 1, by their size on disk; may be asked by any thread."""
        total = sum(self._sizes.values())
        return sum(part.disk_bytes() for part in self._open.values()) / total if total else 1.0

    def events_read(self) -> int:
        """How many events this run has read; may be asked by any thread."""
        return sum(part.events_read() for part in self._open.values())

    def build_part(self, step_id: str, for_part: str, resume_state: FileState | None) -> FilePartition:
        number = int(for_part)
        part = FilePartition(
            self._partitions[number],
            number,
            resume_state or FileState(),
            self._batch_rows_max,
            self._stop,
            self._folder,
        )
        self._open[number] = part
        return part


class FilePartition(StatefulSourcePartition[RawBatch, FileState]):
    """Reads one file from a state on, one batch a poll.

    Holds at most one block of lines that are not emitted yet, the batch, and one unfinished line.

    Raises:
        TallyError: the file is not the one that the state was taken of, or cannot be read.
    """

    def __init__(
        self,
        path: str,
        partition: int,
        state: FileState,
        batch_rows_max: int,
        stop: threading.Event,
        folder: str | None,
    ) -> None:
        self._path = path
        self._folder = folder
        self._partition = partition
        self._batch_rows_max = batch_rows_max
        self._stop = stop
        self._state = state
        self._ready: list[bytes] = []
        self._used = 0
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._disk_bytes = 0
        self._events_before = state.events
        self._raw, self._file = self._open()
        self._head = self._resume(state)
        self._head_hash = (len(self._head), xxh3_128_intdigest(self._head))

    def next_batch(self) -> list[RawBatch]:
        if self._stop.is_set():
            raise StopIteration
        lines = self._take()
        if lines:
            return [self._emit(lines, unterminated=False)]
        last = b"".join(self._tail)
        if not is_json(last):
            raise StopIteration
        self._keep_tail([])
        return [self._emit([last], unterminated=True)]

    def snapshot(self) -> FileState:
        length = min(HEAD_BYTES_MAX, self._state.offset_bytes)
        if self._head_hash[0] != length:
            self._head_hash = (length, xxh3_128_intdigest(self._head[:length]))
        return self._state._replace(head_bytes=length, head_hash=self._head_hash[1])

    def events_read(self) -> int:
        """How many events were emitted since the state that this partition began with."""
        return self._state.events - self._events_before

    def disk_bytes(self) -> int:
        """How much of the file was read, as it stands on disk (compressed bytes of a `.gz`)."""
        return self._disk_bytes

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def _take(self) -> list[bytes]:
        """The next finished lines; none at the end of the file, where `_tail` has the rest."""
        blocks = 0
        while len(self._ready) - self._used < self._batch_rows_max:
            if blocks >= BATCH_BLOCKS_MAX and len(self._ready) > self._used:
                break
            block = self._read_block()
            if not block:
                break
            self._divide(block)
            blocks += 1
        start = self._used
        self._used = min(start + self._batch_rows_max, len(self._ready))
        return self._ready[start : self._used]

    def _divide(self, block: bytes) -> None:
        """Add a block's finished lines to those that are ready, and keep the rest for the next."""
        lines = block.split(b"\n")
        if len(lines) == 1:
            self._keep_tail([*self._tail, block])
            return
        if self._tail:
            lines[0] = b"".join([*self._tail, lines[0]])
        self._keep_tail([lines.pop()])
        self._ready = self._ready[self._used :] + lines if self._used < len(self._ready) else lines
        self._used = 0

    def _keep_tail(self, pieces: list[bytes]) -> None:
        self._tail = [piece for piece in pieces if piece]
        self._tail_bytes = sum(map(len, self._tail))
        if self._tail_bytes > LINE_BYTES_MAX:
            raise TallyError(
                f"{self._path}: a line after line {self._state.lines + len(self._ready) - self._used} is longer than "
                f"{LINE_BYTES_MAX} bytes, so this is not NDJSON. Give a file with one event on each line."
            )

    def _emit(self, lines: list[bytes], *, unterminated: bool) -> RawBatch:
        state = self._state
        start, count = state.lines, len(lines)
        offsets = list(range(start, start + count))
        indexes = [0] * count
        payloads = lines
        if not BATCH_STARTS.isdisjoint({line[:1] for line in lines}):
            offsets, indexes, payloads = _split_lines(start, lines)
        self._state = FileState(
            offset_bytes=state.offset_bytes + sum(map(len, lines)) + (0 if unterminated else count),
            lines=start + count,
            events=state.events + len(payloads),
            unterminated=unterminated,
        )
        return RawBatch(
            topic=TOPIC,
            partition=self._partition,
            start_offset=start,
            next_offset=start + count,
            offsets=offsets,
            indexes=indexes,
            payloads=payloads,
            messages=self._state.lines,
            events=self._state.events,
        )

    def _read_block(self) -> bytes:
        """The next bytes that belong to lines not emitted yet; empty at the end of the file."""
        block = self._read(BLOCK_BYTES)
        if len(self._head) < HEAD_BYTES_MAX:
            self._head += block[: HEAD_BYTES_MAX - len(self._head)]
        if not (block and self._state.unterminated):
            return block
        if not block.startswith(b"\n"):
            raise TallyError(
                f"{self._path}: line {self._state.lines} had been read as complete without its line end, and was "
                "extended since. What was read stands in the ledger. Put a line end after what the line was, and the "
                "rest on a line of its own; a writer must write whole lines."
            )
        self._state = self._state._replace(offset_bytes=self._state.offset_bytes + 1, unterminated=False)
        return block[1:] or self._read_block()

    def _read(self, size: int) -> bytes:
        try:
            piece = self._file.read(size) or b""
            self._disk_bytes = self._raw.tell()
            return piece
        except (OSError, EOFError, zlib.error) as error:
            raise TallyError(
                f"{self._path}: cannot be read on after byte {self._state.offset_bytes} (uncompressed), line "
                f"{self._state.lines}: {error}. Replace it by a complete file with the same beginning; a run goes on "
                "where this one ended."
            ) from error

    def _open(self) -> tuple[RawIOBase, RawIOBase | BufferedIOBase]:
        """The file as it stands on disk, and as it is to be read."""
        raw = open_regular(self._path, self._folder)
        return raw, gzip.GzipFile(fileobj=raw) if self._path.lower().endswith(".gz") else raw

    def _resume(self, state: FileState) -> bytes:
        """Go to where the state ends, if this is still the same file; return the file's beginning."""
        head = self._read_fully(state.head_bytes)
        if len(head) == state.head_bytes and xxh3_128_intdigest(head) != state.head_hash and state.head_bytes:
            raise self._changed("its beginning is not what it was")
        skip_bytes = state.offset_bytes - state.head_bytes
        before = head[-1:]
        if skip_bytes > 0 and isinstance(self._file, RawIOBase):
            self._file.seek(state.offset_bytes - 1)
            skip_bytes = 1
        while skip_bytes > 0:
            skipped = self._read(min(skip_bytes, BLOCK_BYTES))
            if not skipped:
                break
            skip_bytes -= len(skipped)
            before = skipped[-1:]
        if skip_bytes > 0 or len(head) < state.head_bytes:
            raise self._changed(f"it has less than the {state.offset_bytes} bytes that were read of it")
        if state.offset_bytes > 0 and not state.unterminated and before != b"\n":
            raise self._changed(f"line {state.lines} does not end where it did")
        return head

    def _read_fully(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size > 0 and (piece := self._read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _changed(self, what: str) -> TallyError:
        return TallyError(
            f"{self._path}: {what}, but {self._state.lines} of its lines stand in the ledger. Restore the file; new "
            "events belong at its end, or in a file with a new name."
        )


def _split_lines(start: int, lines: list[bytes]) -> tuple[list[int], list[int], list[bytes]]:
    """Offset, index and bytes of each event; lines that cannot be batches are taken over in runs."""
    offsets: list[int] = []
    indexes: list[int] = []
    payloads: list[bytes] = []
    done = 0
    for place in [i for i, line in enumerate(lines) if line[:1] in BATCH_STARTS] + [len(lines)]:
        offsets += range(start + done, start + place)
        indexes += [0] * (place - done)
        payloads += lines[done:place]
        done = place + 1
        if place < len(lines):
            events = split(lines[place])
            offsets += [start + place] * len(events)
            indexes += range(len(events))
            payloads += events
    return offsets, indexes, payloads
