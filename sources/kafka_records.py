"""kafka-python's record parser, made to survive header names that are not UTF-8.

Kafka takes any bytes as a header's name. kafka-python 3.0 decodes them strictly, and after the error
its consumer loops in `poll()` for good: one message would stop the flow for everybody. `install()`
puts a parser in its place that replaces such bytes in names by `BAD_NAME`. A CloudEvents attribute
with such a name makes its message a reject (`sources.kafka_messages`); any other header is ignored.

The patch is of one class of a version that is pinned exactly; a test against a real broker holds it.
"""

from __future__ import annotations

from typing import Any, Final

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

BAD_NAME: Final = "\x1a"
"""Stands for one byte of a name that is not UTF-8: Unicode's SUBSTITUTE."""


class TolerantBatch(DefaultRecordBatch):  # type: ignore[misc]
    """A batch of records whose header names may be any bytes."""

    __slots__ = ()

    def _read_msg(self) -> Any:
        try:
            return super()._read_msg()
        except UnicodeDecodeError:
            setattr(self, "_buffer", _with_readable_names(self._buffer, self._pos))  # noqa: B010 # a slot of the base
            return super()._read_msg()


def install() -> None:
    """Have every consumer of this process use it; may be called again."""
    memory_records.DefaultRecordBatch = TolerantBatch


def _with_readable_names(buffer: bytearray, start: int) -> bytearray:
    """The buffer with the header names of the record at `start` in UTF-8, each as long as it was."""
    _, pos = decode_varint(buffer, start)
    for _ in range(3):  # attributes, timestamp, offset
        _, pos = decode_varint(buffer, pos)
    for _ in range(2):  # key, value
        size, pos = decode_varint(buffer, pos)
        pos += max(size, 0)
    count, pos = decode_varint(buffer, pos)
    readable = bytearray(buffer)
    for _ in range(count):
        size, pos = decode_varint(buffer, pos)
        readable[pos : pos + size] = _readable(buffer[pos : pos + size])
        pos += size
        size, pos = decode_varint(buffer, pos)
        pos += max(size, 0)
    return readable


def _readable(name: bytearray) -> bytes | bytearray:
    try:
        name.decode()
    except UnicodeDecodeError:
        return bytes(byte if byte < 0x80 else ord(BAD_NAME) for byte in name)
    return name
