"""What passes between the thread that reads Kafka and the workers that count: one `Feed` a partition.

A feed is bounded: the reader fetches nothing while one is full, so memory does not grow with a backlog.
Small fetches are joined when they are taken, so a worker gets few and large batches.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sources.kafka_messages import Fetched, joined

FEED_BYTES_MAX: Final = 8 * 1024 * 1024
"""A feed with this much is full; one more fetch may already be on its way."""

FEED_PIECES_MAX: Final = 1000
"""So many fetches too, whatever is in them: a transaction without messages is one."""


class Ends(NamedTuple):
    """Where a partition ended when it was looked at."""

    begun_us: int
    """The brokers' clock, at least, before they were asked."""
    high: int
    """The high watermark: behind the last message that is replicated."""
    stable: int
    """The last stable offset: before the first open transaction."""


class Lag(NamedTuple):
    """How far a partition is behind."""

    offsets: int
    """Messages and markers that were not emitted yet, open transactions too."""
    seconds: float
    """Age of the next message, at most: 0 where nothing is waiting."""


@dataclass(slots=True)
class Feed:
    """One partition. Each attribute has one writer: the reader, the keeper or the worker."""

    partition: int
    rows_max: int
    position: int
    """Reader: the next offset to be fetched."""
    taken: int
    """Worker: the next offset to be emitted."""
    log_time_us: int = 0
    """Worker: the greatest log time emitted, or claimed while idle."""
    durable: int | None = None
    """Worker: the offset of a snapshot that is surely stored."""
    ends: Ends | None = None
    """Keeper: the last look."""
    caught_up_us: int = 0
    """Keeper: when the partition was last seen to have nothing waiting."""
    _pieces: deque[Fetched] = field(default_factory=deque)
    _messages: int = 0
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, piece: Fetched) -> None:
        """Add what was fetched."""
        with self._lock:
            self._pieces.append(piece)
            self._messages += piece.messages
            self._bytes += _bytes_of(piece)
            self.position = piece.next_offset

    def take(self) -> Fetched | None:
        """What waits, up to the messages of one batch; None if there is nothing."""
        if not self._pieces:
            return None
        taken: list[Fetched] = []
        room = self.rows_max
        with self._lock:
            while self._pieces and (not taken or self._pieces[0].messages <= room):
                piece = self._pieces.popleft()
                taken.append(piece)
                room -= piece.messages
                self._messages -= piece.messages
                self._bytes -= _bytes_of(piece)
        return joined(taken)

    @property
    def waits(self) -> bool:
        """Whether there is something to take."""
        return bool(self._pieces)

    @property
    def full(self) -> bool:
        """Whether no more should be fetched for now."""
        crowded = self._messages >= self.rows_max or self._bytes >= FEED_BYTES_MAX
        return crowded or len(self._pieces) >= FEED_PIECES_MAX

    def lag(self, now_us: int) -> Lag:
        """How far the worker is behind the last look."""
        waiting = 0 if self.ends is None else max(self.ends.high - self.taken, 0)
        since_us = max(self.log_time_us, self.caught_up_us)
        return Lag(waiting, max(now_us - since_us, 0) / 1e6 if waiting and since_us else 0.0)


def _bytes_of(piece: Fetched) -> int:
    return sum(map(len, piece.payloads))
