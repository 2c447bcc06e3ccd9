"""A Kafka topic in memory: partitions with log times, transactions, and gaps where their markers are.

The source's own `KafkaPartition` and `Feed` read it; only what the reader's threads do is done here, at each poll.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from bytewax.inputs import FixedPartitionedSource
from typing_extensions import override

from domain.ports import TallyError
from domain.values import SECOND_US, RawBatch
from sources.kafka import POLL_EVERY, KafkaPartition, KafkaState
from sources.kafka_feed import Ends, Feed
from sources.kafka_messages import fetched
from sources.kafka_reader import Reader
from tests.simulation.effects import Effects

TOPIC_ID = "fake-topic"
FETCH_MESSAGES_MAX = 50


class Message(NamedTuple):
    """A record, as the oracle reads it, and as a consumer gives it."""

    partition: int
    offset: int
    log_time_us: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    topic: str = "usage"
    timestamp_type: int = 1

    @property
    def timestamp(self) -> int:
        """Kafka's clock ticks in milliseconds."""
        assert self.log_time_us % 1000 == 0
        return self.log_time_us // 1000


@dataclass
class Partition:
    """What was appended, in order of offset; offsets without a message are markers, or were taken back."""

    messages: list[Message] = field(default_factory=list)
    high: int = 0
    """The offset after the last append."""
    open_from: int | None = None
    """Where an open transaction begins: nothing from there on can be read."""
    pending: list[int] = field(default_factory=list)
    """Offsets that the open transaction has written."""

    @property
    def stable(self) -> int:
        return self.high if self.open_from is None else self.open_from


@dataclass
class LogServer:
    """One topic on LogAppendTime.

    Args:
        now_us: The brokers' clock. Log times of a partition never fall.
    """

    name: str
    now_us: Callable[[], int]
    partitions: list[Partition] = field(default_factory=list)

    def add_partition(self) -> None:
        self.partitions.append(Partition())

    def append(self, partition: int, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Write one message."""
        found = self.partitions[partition]
        log_time_us = self.now_us() // 1000 * 1000
        if found.messages:
            log_time_us = max(log_time_us, found.messages[-1].log_time_us)
        found.messages.append(Message(partition, found.high, log_time_us, value, headers, self.name))
        found.high += 1

    def transact(self, partition: int, values: Sequence[bytes]) -> None:
        """Begin a transaction, or go on with it: readers see none of it, nor what comes after, until it ends."""
        found = self.partitions[partition]
        if found.open_from is None:
            found.open_from = found.high
        for value in values:
            found.pending.append(found.high)
            self.append(partition, value)

    def end(self, partition: int, *, commit: bool) -> None:
        """End the transaction, if there is one; a marker takes an offset."""
        found = self.partitions[partition]
        if found.open_from is None:
            return
        if not commit:
            found.messages = [message for message in found.messages if message.offset not in set(found.pending)]
        found.open_from, found.pending = None, []
        found.high += 1

    def messages(self) -> list[Message]:
        """Everything that can be read."""
        return [m for partition in self.partitions for m in partition.messages if m.offset < partition.stable]

    def logged_until_us(self) -> int:
        """As `sources.kafka.KafkaSource` tells it."""
        return max((m.log_time_us for partition in self.partitions for m in partition.messages), default=0)

    def source(self, *, rows_max: int, stop: threading.Event, effects: Effects | None = None) -> LogSource:
        return LogSource(self, rows_max, stop, effects)


class LogSource(FixedPartitionedSource[RawBatch, KafkaState]):
    """In place of `sources.kafka.KafkaSource`: one start's, with the partitions that there are by then."""

    def __init__(self, server: LogServer, rows_max: int, stop: threading.Event, effects: Effects | None) -> None:
        self._server = server
        self._rows_max = rows_max
        self._stop = stop
        self._effects = effects
        self._count = len(server.partitions)
        self._feeds: dict[int, Feed] = {}

    @property
    def partitions(self) -> range:
        return range(self._count)

    @override
    def list_parts(self) -> list[str]:
        return [str(partition) for partition in self.partitions]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: KafkaState | None) -> KafkaPartition:
        state = resume_state or KafkaState(TOPIC_ID, 0)
        feed = Feed(
            int(for_part),
            self._rows_max,
            position=state.next_offset,
            taken=state.next_offset,
            log_time_us=state.log_time_us,
        )
        self._feeds[feed.partition] = feed
        return FakePartition(self._server, feed, state, _Reader(self._server, feed, self._effects), self._stop)

    @property
    def is_read(self) -> bool:
        """Whether all that can be read was emitted."""
        ends = [self._server.partitions[number].stable for number in self.partitions]
        return [feed.taken for _, feed in sorted(self._feeds.items())] == ends


class FakePartition(KafkaPartition):
    """Sleeps by the brokers' clock, which is virtual."""

    def __init__(
        self, server: LogServer, feed: Feed, state: KafkaState, reader: _Reader, stop: threading.Event
    ) -> None:
        super().__init__(server.name, feed, state, cast(Reader, reader), stop)
        self._now_us = server.now_us
        self._polled_us = 0

    @override
    def next_batch(self) -> list[RawBatch]:
        self._polled_us = self._now_us()
        return super().next_batch()

    @override
    def next_awake(self) -> datetime | None:
        if super().next_awake() is None:
            return None
        return datetime.fromtimestamp(self._polled_us / SECOND_US, UTC) + POLL_EVERY


class _Reader:
    """Does at each poll of a partition what the real reader's threads do meanwhile: fetches, and looks at the ends."""

    def __init__(self, server: LogServer, feed: Feed, effects: Effects | None) -> None:
        self._server = server
        self._feed = feed
        self._effects = effects

    def check(self) -> None:
        """A failed fetch is one that brought nothing: the real reader makes a new consumer and goes on."""
        partition = self._server.partitions[self._feed.partition]
        try:
            if self._effects is not None:
                self._effects.before("log.read", _Passing)
            self._fetch(partition)
            if self._effects is not None:
                self._effects.after("log.read", _Passing)
        except _Passing:
            return
        self._feed.ends = Ends(self._server.now_us(), partition.high, partition.stable)

    def _fetch(self, partition: Partition) -> None:
        feed = self._feed
        if feed.full or feed.position >= partition.stable:
            return
        readable = [m for m in partition.messages if feed.position <= m.offset < partition.stable]
        some: list[Any] = readable[: min(FETCH_MESSAGES_MAX, feed.rows_max)]
        end = partition.stable if len(some) == len(readable) else some[-1].offset + 1
        feed.put(fetched(feed.position, end, some))


class _Passing(TallyError):
    """A consumer's trouble that a new one does not have."""
