"""A Kafka topic as the log: each partition is a partition, each message has its offset, log times are the broker's.

Guarantees: every committed message is emitted once, in order, as at least one event; a restart goes on
at its snapshot's offset. The batches of a partition cover its offsets without a gap, also where Kafka
has none to show: aborted transactions, markers, what retention removed before the first start.

Nothing is skipped. What would lose or double usage stops the flow with `TallyError`: messages that
retention took before they were counted, another topic of the same name, partitions that are gone, a
log on producers' time. Broker restarts and new leaders are waited for, up to `wait_seconds`.

A partition without messages still says how far its log time is, so that others' windows can be
forgotten: everything up to the high watermark was emitted, and the watermark was asked for after the
moment claimed, less 5 minutes for brokers whose clocks differ (DESIGN, section 2). That moment goes by
the brokers' clocks, not by this machine's (`sources.kafka_clock`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec

from domain.envelope import split
from domain.ports import TallyError
from domain.values import MINUTE_US, RawBatch
from sources.file_places import Wanted
from sources.kafka_client import Options, connected
from sources.kafka_clock import LogClock
from sources.kafka_feed import Feed, Lag
from sources.kafka_messages import Fetched
from sources.kafka_reader import LOOK_SECONDS, Reader
from sources.kafka_topic import Topic, recreated

IDLE_SLACK_US: Final = 5 * MINUTE_US
IDLE_EVERY_US: Final = MINUTE_US
"""An idle partition claims its log time this often."""
POLL_EVERY: Final = timedelta(milliseconds=5)
"""How long a worker leaves a partition alone that had nothing."""


class KafkaState(NamedTuple):
    """How far a partition is read; what Bytewax keeps as its snapshot."""

    topic_id: str
    next_offset: int
    messages: int = 0
    """Messages from the beginning of the deployment to `next_offset`."""
    events: int = 0
    log_time_us: int = 0
    """The greatest log time so far, or claimed while idle."""


class KafkaSource(FixedPartitionedSource[RawBatch, KafkaState]):
    """The partitions of one topic. Close it after the flow.

    Args:
        options: Arguments of every client (`config.kafka_client`).
        topic: As `sources.kafka_topic` judged it.
        batch_rows_max: Messages in a batch, at least 1.
        stop: Once set, every partition ends at its next poll.
        wait_seconds: How long an unreachable or stuck Kafka is waited for.
        group: What durable offsets are committed under.
        accepted_loss: By partition, the offset up to which lost messages are accepted as lost.
        known_partitions: How many partitions the deployment has read from before; 0 for a new one.
        first_counted: Of a partition without a snapshot, the least offset that was counted all the same: a run ended
            before its first snapshot, or lost it.
        now_us: The wall clock, for what tells how far behind this is.
        clock: The brokers' clock, as far as it can be known.
        look_seconds: How often the log is looked at beside reading.
        consumer: Makes the consumer; for tests.

    Raises:
        TallyError: Kafka cannot be reached.
    """

    def __init__(
        self,
        options: Options,
        topic: Topic,
        *,
        batch_rows_max: int,
        stop: threading.Event,
        wait_seconds: float,
        group: str,
        accepted_loss: Mapping[int, int] | None = None,
        known_partitions: int = 0,
        first_counted: Callable[[int], int | None] = lambda partition: None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        clock: LogClock | None = None,
        look_seconds: float = LOOK_SECONDS,
        consumer: Callable[..., Any] = KafkaConsumer,
    ) -> None:
        if batch_rows_max < 1:
            raise ValueError(f"batch_rows_max must be at least 1, not {batch_rows_max}")
        self.topic = topic
        self._rows_max = batch_rows_max
        self._stop = stop
        self._accepted_loss = accepted_loss or {}
        self._known_partitions = known_partitions
        self._options = options
        self._wait_seconds = wait_seconds
        self._first_counted = first_counted
        self._bounds = _bounds(options, topic, wait_seconds)
        self._parts: dict[int, KafkaPartition] = {}
        self._reader = Reader(
            options,
            topic,
            rows_max=batch_rows_max,
            wait_seconds=wait_seconds,
            group=group,
            now_us=now_us,
            clock=clock or LogClock(),
            look_seconds=look_seconds,
            consumer=consumer,
        )

    @property
    def partitions(self) -> range:
        """The number of every partition of the topic, wherever it is read."""
        return range(self.topic.partitions)

    def list_parts(self) -> list[str]:
        return [str(partition) for partition in self.partitions]

    def build_part(self, step_id: str, for_part: str, resume_state: KafkaState | None) -> KafkaPartition:
        partition = int(for_part)
        beginning, end = self._bounds[partition]
        if resume_state is None:
            state = KafkaState(self.topic.id, 0)
            first = self._first_counted(partition)
            if first is not None:
                self._judged(partition, first, beginning, end)
                position = beginning
            elif partition < self._known_partitions or not self._known_partitions:
                position = beginning
            else:
                position = self._judged(partition, 0, beginning, end)
        else:
            state = resume_state
            if state.topic_id != self.topic.id:
                raise recreated(self.topic.name, self.topic.id, state.topic_id)
            position = self._judged(partition, state.next_offset, beginning, end)
        feed = Feed(
            partition,
            self._rows_max,
            position=state.next_offset,
            taken=state.next_offset,
            log_time_us=state.log_time_us,
            durable=None if resume_state is None else state.next_offset,
        )
        if position > state.next_offset:
            feed.put(Fetched(state.next_offset, position, 0, [], [], [], None, [], 0))
        part = KafkaPartition(self.topic.name, feed, state, self._reader, self._stop)
        self._parts[partition] = part
        self._reader.add(feed)
        return part

    def lags(self) -> dict[int, Lag]:
        """How far each partition of this process is behind; may be asked by any thread."""
        return self._reader.lags()

    def ends(self) -> list[tuple[int, int]]:
        """Of each partition of this process, the offset after the last message that can be read, as last seen."""
        return self._reader.ends()

    def logged_until_us(self) -> int:
        """The newest log time of all messages, those of open and aborted transactions too; 0 if there are none.

        Raises:
            TallyError: Kafka cannot be reached.
        """
        partitions = [TopicPartition(self.topic.name, partition) for partition in self.partitions]
        with connected(self._options, self._wait_seconds) as client:
            found = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.MAX_TIMESTAMP))
        return max(0, *(int(newest.timestamp) * 1000 for newest in found.values()))

    def silent_seconds(self) -> float:
        """Since Kafka last answered; may be asked by any thread."""
        return self._reader.silent_seconds()

    def events_read(self) -> int:
        """How many events this run has read; may be asked by any thread."""
        return sum(part.events_read() for part in list(self._parts.values()))

    def close(self) -> None:
        """Let go of Kafka. Partitions must not be polled any more."""
        self._reader.close()

    def _judged(self, partition: int, next_offset: int, beginning: int, end: int) -> int:
        """Where to go on; refuses to go on where messages are missing."""
        name = f"{self.topic.name}/{partition}"
        if next_offset > end:
            raise TallyError(
                f"{name} ends at offset {end}, but was read up to {next_offset}: Kafka lost its last messages (an "
                "unclean leader election, a restored backup). New events would take offsets that the ledger already "
                "knows. Start a new deployment: a new topic, TALLY_DATA_DIR, database and Redis."
            )
        if beginning <= next_offset:
            return next_offset
        if beginning <= self._accepted_loss.get(partition, 0):
            return beginning
        raise TallyError(
            f"{name}: the messages from offset {next_offset} to {beginning - 1} are lost: Kafka deleted them before "
            f"they were counted (the topic keeps messages {self.topic.lasts()}). If the ledger has them, the saved "
            "state is an old one: rebuild it (tally run --source ledger). If there is a copy of them, send them again: "
            "repeats are recognised. To go on without them set "
            f"TALLY_KAFKA_ACCEPT_LOSS={partition}:{beginning}"
        )


class KafkaPartition(StatefulSourcePartition[RawBatch, KafkaState]):
    """Emits what the reader put into one feed, a batch a poll. Never waits."""

    def __init__(self, topic: str, feed: Feed, state: KafkaState, reader: Reader, stop: threading.Event) -> None:
        self._topic = topic
        self._feed = feed
        self._state = state
        self._reader = reader
        self._stop = stop
        self._events_before = state.events
        self._snapshot_offset: int | None = None

    def next_batch(self) -> list[RawBatch]:
        if self._stop.is_set():
            raise StopIteration
        self._reader.check()
        piece = self._feed.take() or self._idle()
        return [] if piece is None else [self._emit(piece)]

    def next_awake(self) -> datetime | None:
        return None if self._feed.waits else datetime.now(UTC) + POLL_EVERY

    def snapshot(self) -> KafkaState:
        """Where to go on. The snapshot before this one is stored by now, so its offset may be committed."""
        if self._snapshot_offset is not None:
            self._feed.durable = self._snapshot_offset
        self._snapshot_offset = self._state.next_offset
        return self._state

    def events_read(self) -> int:
        """How many events were emitted since the state that this partition began with."""
        return self._state.events - self._events_before

    def _idle(self) -> Fetched | None:
        """A batch without messages that says how far log time is, if that is known and worth saying."""
        state, ends = self._state, self._feed.ends
        if ends is None or ends.high != state.next_offset:
            return None
        claimed_us = ends.begun_us - IDLE_SLACK_US
        if claimed_us < state.log_time_us + IDLE_EVERY_US:
            return None
        return Fetched(state.next_offset, state.next_offset, 0, [], [], [], None, [], claimed_us)

    def _emit(self, piece: Fetched) -> RawBatch:
        before = self._state
        assert piece.start_offset == before.next_offset, f"{piece.start_offset} does not follow {before.next_offset}"
        self._state = state = before._replace(
            next_offset=piece.next_offset,
            messages=before.messages + piece.messages,
            events=before.events + len(piece.payloads),
            log_time_us=max(before.log_time_us, piece.log_time_us),
        )
        self._feed.taken, self._feed.log_time_us = state.next_offset, state.log_time_us
        return RawBatch(
            topic=self._topic,
            partition=self._feed.partition,
            start_offset=piece.start_offset,
            next_offset=piece.next_offset,
            offsets=piece.offsets,
            indexes=piece.indexes,
            payloads=piece.payloads,
            messages=state.messages,
            events=state.events,
            attributes=piece.attributes,
            log_times_us=piece.log_times_us,
            log_time_us=state.log_time_us,
        )


def parse_accepted_loss(text: str) -> dict[int, int]:
    """`TALLY_KAFKA_ACCEPT_LOSS`: `partition:offset`, separated by commas; empty for none.

    Raises:
        TallyError: it has another form.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,18})", part)
        if match is None:
            raise TallyError(
                f"TALLY_KAFKA_ACCEPT_LOSS has {part!r}: write partition:offset, as the error message said it"
            )
        found[int(match[1])] = int(match[2])
    return found


def check_counted(options: Options, topic: Topic, counted: Mapping[int, Wanted], seconds_max: float) -> None:
    """Refuse a topic whose last counted messages are not what the ledger has of them, as far as they are still there.

    Args:
        options: Of the client.
        topic: Its id is not known from before.
        counted: By partition, some of what the ledger has.
        seconds_max: How long Kafka may take.

    Raises:
        TallyError: it is another topic, or Kafka gives no answer.
    """
    bounds = _bounds(options, topic, seconds_max)
    last = {partition: max(want.samples) for partition, want in counted.items() if want.samples}
    with closing(KafkaConsumer(**options, isolation_level="read_committed", auto_offset_reset="none")) as consumer:
        for partition, (offset, element) in sorted(last.items()):
            beginning, end = bounds.get(partition, (0, 0))
            if offset < beginning:
                continue
            place = TopicPartition(topic.name, partition)
            value = _value_at(consumer, place, offset, seconds_max) if offset < end else b""
            payload = counted[partition].samples[offset, element]
            if payload != value and split(value)[element : element + 1] != [payload]:
                raise TallyError(
                    f"{topic.name}/{partition}: offset {offset} does not hold the message that the ledger has of it: "
                    "the topic was deleted and made again, or this is another cluster. Restore the old topic, or start "
                    "a new deployment: a new topic name, TALLY_DATA_DIR, database and Redis."
                )


def _value_at(consumer: Any, place: TopicPartition, offset: int, seconds_max: float) -> bytes:
    """The message at an offset; empty if there is none."""
    consumer.assign([place])
    consumer.seek(place, offset)
    give_up = time.monotonic() + seconds_max
    while time.monotonic() < give_up:
        for message in consumer.poll(timeout_ms=500, max_records=1).get(place, []):
            return message.value or b"" if message.offset == offset else b""
    raise TallyError(f"{place.topic}/{place.partition}: offset {offset} was not read within {seconds_max:g} s")


def _bounds(options: Options, topic: Topic, seconds_max: float) -> dict[int, tuple[int, int]]:
    """The first and the next offset of each partition."""
    partitions = [TopicPartition(topic.name, partition) for partition in range(topic.partitions)]
    with connected(options, seconds_max) as client:
        first = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
        last = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {each.partition: (int(first[each].offset), int(last[each].offset)) for each in partitions}
