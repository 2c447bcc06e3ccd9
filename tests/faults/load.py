"""A load whose outcome is known: usage from a seed, encoded as Kafka's own record batches by numpy.

An event costs a fraction of a microsecond here, so that what is measured is the flow. Every event has the same
length; what differs between two of them are digits at fixed places. Repeats are copies, so they are duplicates.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import lz4.frame
import numpy as np
from crc32c import crc32c

SUBJECTS = 1_000
ROWS_MAX = 4_000
"""Events of one record batch; their offsets are two bytes of a varint."""
REPEATS_SHARE = 0.05
MINUTE_US = 60_000_000
_ID_DIGITS = 11
_BYTES_MIN, _BYTES_MAX = 1_000, 9_999
_TICK_SECONDS = 0.1
_LZ4 = 3

Rows = np.ndarray[Any, np.dtype[np.uint8]]


class Generator:
    """Makes record batches, and keeps what has to come of them."""

    def __init__(self, seed: int, partitions: int) -> None:
        self.partitions = partitions
        self.events = 0
        """Ids are the numbers below this one."""
        self.repeats = 0
        self.sent = [0] * partitions
        """Messages of each partition."""
        self.counts: Counter[tuple[str, int]] = Counter()
        self.sums: Counter[tuple[str, int]] = Counter()
        """By subject and minute (its start in microseconds), events and bytes."""
        self._draw = np.random.default_rng(seed)
        self._before: list[Rows | None] = [None] * partitions

    def batch(self, partition: int, count: int, now_us: int) -> bytes:
        """The next record batch of a partition: so many new events, and some of the last batch again."""
        repeats = int(count * REPEATS_SHARE) if self._before[partition] is not None else 0
        rows = self._new(partition, count, now_us)
        before, self._before[partition] = self._before[partition], rows
        if before is not None and repeats:
            rows = np.concatenate([rows, before[self._draw.integers(0, len(before), repeats)]])
            self.repeats += repeats
        self.sent[partition] += len(rows)
        return _record_batch(rows)

    def _new(self, partition: int, count: int, now_us: int) -> Rows:
        time = datetime.fromtimestamp(now_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
        rows = np.tile(_TEMPLATE.row, (count, 1))
        subjects = self._draw.integers(0, SUBJECTS // self.partitions, count) * self.partitions + partition
        values = self._draw.integers(_BYTES_MIN, _BYTES_MAX + 1, count)
        _write(rows, _TEMPLATE.key, subjects, 4)
        _write(rows, _TEMPLATE.subject, subjects, 4)
        _write(rows, _TEMPLATE.id, np.arange(self.events, self.events + count), _ID_DIGITS)
        _write(rows, _TEMPLATE.bytes, values, 4)
        rows[:, _TEMPLATE.time : _TEMPLATE.time + len(time)] = np.frombuffer(time, np.uint8)
        self.events += count
        minute = int(datetime.fromisoformat(time.decode()).timestamp()) // 60 * MINUTE_US
        counts, sums = np.bincount(subjects, minlength=SUBJECTS), np.bincount(subjects, values, SUBJECTS)
        for subject in np.nonzero(counts)[0]:
            key = f"customer-{subject:04}", minute
            self.counts[key] += int(counts[subject])
            self.sums[key] += int(sums[subject])
        return rows


class Producer:
    """Sends record batches over one connection to a broker, and waits for each to be acknowledged."""

    def __init__(self, address: str, topic: str) -> None:
        host, _, port = address.partition(":")
        self._topic = topic.encode()
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, batches: dict[int, bytes]) -> None:
        """Send a record batch to each of some partitions (Produce, version 3)."""
        self._number += 1
        parts = b"".join(struct.pack(">ii", number, len(batch)) + batch for number, batch in batches.items())
        body = struct.pack(">hhii", -1, -1, 30_000, 1) + struct.pack(">h", len(self._topic)) + self._topic
        request = struct.pack(">hhih", 0, 3, self._number, -1) + body + struct.pack(">i", len(batches)) + parts
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        answer = self._receive(struct.unpack(">i", self._receive(4))[0])
        assert struct.unpack_from(">i", answer)[0] == self._number
        at = 4 + 4 + 2 + len(self._topic)
        (count,) = struct.unpack_from(">i", answer, at)
        errors = [struct.unpack_from(">ih", answer, at + 4 + i * 22) for i in range(count)]
        assert sorted(errors) == [(number, 0) for number in sorted(batches)], errors

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            assert more, "the broker closed the connection"
            data += more
        return data


@dataclass
class Load:
    """Sends at a rate on a thread, whatever becomes of it (an open loop); a context manager."""

    address: str
    topic: str
    generator: Generator
    rate: float
    """Messages a second; 0 pauses."""
    _ending: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        if self._failed:
            raise self._failed[0]

    def _run(self) -> None:
        try:
            with Producer(self.address, self.topic) as producer:
                due, last = 0.0, time.monotonic()
                while not self._ending.wait(_TICK_SECONDS):
                    now = time.monotonic()
                    due += self.rate * (now - last)
                    last = now
                    due -= self._send(producer, int(due))
        except BaseException as error:
            self._failed.append(error)

    def _send(self, producer: Producer, messages: int) -> int:
        made, partitions = 0, self.generator.partitions
        while messages - made >= partitions * 2:
            count = min((messages - made) // partitions, ROWS_MAX)
            new, now_us, before = int(count / (1 + REPEATS_SHARE)), time.time_ns() // 1000, sum(self.generator.sent)
            producer.send({number: self.generator.batch(number, new or 1, now_us) for number in range(partitions)})
            made += sum(self.generator.sent) - before
        return made


@dataclass(frozen=True)
class _Template:
    """One record, and where its digits are."""

    row: Rows
    key: int
    subject: int
    id: int
    time: int
    bytes: int


def _template() -> _Template:
    key = b"customer-0000"
    value = (
        b'{"specversion":"1.0","id":"' + b"0" * _ID_DIGITS + b'","source":"/soak","type":"api.request",'
        b'"subject":"customer-0000","time":"2026-01-01T00:00:00.000000Z","data":{"bytes":1000}}'
    )
    # attributes, no time of its own, the offset's two bytes; then key and value with their lengths, and no headers
    start = b"\0" + b"\0" + b"\x80\0" + _varint(len(key)) + key + _varint(len(value))
    record = start + value + b"\0"
    record = _varint(len(record)) + record
    at = record.index(value)
    return _Template(
        np.frombuffer(record, np.uint8),
        record.index(key) + len(b"customer-"),
        at + value.index(b"customer-") + len(b"customer-"),
        at + value.index(b'"id":"') + len(b'"id":"'),
        at + value.index(b'"time":"') + len(b'"time":"'),
        at + value.index(b"1000}"),
    )


def _varint(number: int) -> bytes:
    number <<= 1  # zigzag, of what is not negative
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


_TEMPLATE = _template()
_OFFSET = len(_varint(len(_TEMPLATE.row) - 2)) + 2
"""Where a record has the two bytes of its offset."""


def _write(rows: Rows, at: int, numbers: Any, digits: int) -> None:
    for place in range(digits):
        rows[:, at + place] = numbers // 10 ** (digits - 1 - place) % 10 + ord("0")


def _record_batch(rows: Rows) -> bytes:
    count = len(rows)
    numbers = np.arange(count) * 2  # zigzag
    assert count < 1 << 13
    rows[:, _OFFSET] = numbers & 0x7F | 0x80
    rows[:, _OFFSET + 1] = numbers >> 7
    records: bytes = lz4.frame.compress(rows.tobytes(), block_linked=False, store_size=False)  # as Kafka reads it
    rest = struct.pack(">hiqqqhii", _LZ4, count - 1, 0, 0, -1, -1, -1, count) + records
    head: bytes = struct.pack(">qiibI", 0, len(rest) + 9, -1, 2, crc32c(rest))
    return head + rest
