"""What an audit is given, where it does not come as it is: files as a log, quota states from a Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tests.oracle.events import lines


class Message(Protocol):
    """A record of a log; of a file's line, the log time is None: its event says it."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def log_time_us(self) -> int | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True)
class Line:
    """A line of a file, as a record of the log `file`."""

    partition: int
    offset: int
    value: bytes
    log_time_us: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def file_messages(files: Iterable[tuple[int, bytes]]) -> list[Line]:
    """The log that files are; each with its partition and whole uncompressed content."""
    return [Line(number, offset, line) for number, content in files for offset, line in enumerate(lines(content))]


def read_quotas(client: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """By subject and feature, the quota states that products read in a Redis (a `redis.Redis`)."""
    found = {}
    for key in client.scan_iter(match="quota:{*}", count=1000):
        subject = key.decode()[len("quota:{") : -1]
        for feature, value in client.hgetall(key).items():
            found[subject, feature.decode()] = json.loads(value)
    return found
