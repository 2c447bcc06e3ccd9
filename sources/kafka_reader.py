"""Reading Kafka beside the workers: one consumer for all partitions of this process, and one watch over it.

The *reader* thread polls and fills the feeds, so that no worker waits for the network. Whatever goes
wrong, it makes a new consumer and goes on where the feeds end: the loops of kafka-python hide most
faults, and some leave a consumer that never returns a message again.

So the *keeper* thread, with a connection of its own, asks Kafka every few seconds where each partition
ends, and whether the topic is still the one it was. It does not trust the reader: a partition that has
messages and is not read for `wait_seconds` is a fault, and so is a Kafka that does not answer for that
long. Workers look at both at every poll (`check`) and stop the flow; nothing is ever skipped.

It also commits offsets for tools that show lag: only those of snapshots that are surely stored. A
commit that fails is logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    LogTruncationError,
    NoError,
    OffsetOutOfRangeError,
    RetriableError,
    UnsupportedCodecError,
)
from kafka.protocol.consumer import IsolationLevel
from kafka.structs import OffsetAndMetadata

from domain.ports import TallyError
from sources import kafka_records
from sources.kafka_client import REQUEST_SECONDS_MAX, Options, connect, reason, unusable
from sources.kafka_clock import LogClock
from sources.kafka_feed import Ends, Feed, Lag
from sources.kafka_messages import fetched
from sources.kafka_topic import Topic, describe, recreated

POLL_SECONDS_MAX: Final = 0.1
"""A poll waits this long for messages: how late the reader sees that it shall end."""
FETCH_WAIT_MS_MAX: Final = 20
"""A broker gathers messages this long before it answers: fewer and larger batches for a little latency."""
FETCH_BYTES_MIN: Final = 64 * 1024
FETCH_BYTES_MAX: Final = 16 * 1024 * 1024
PARTITION_FETCH_BYTES_MAX: Final = 2 * 1024 * 1024
ROOM_SECONDS: Final = 0.005
"""How often a full feed is looked at."""
SURVEY_SECONDS: Final = 0.5
"""How often every position is looked at, also of partitions that brought no message."""
LOOK_SECONDS: Final = 2.0
BACKOFF_SECONDS: Final = 0.5
CONNECT_SECONDS_MAX: Final = 5
JOIN_SECONDS_MAX: Final = 2

logger = logging.getLogger(__name__)


class Reader:
    """The threads, and what they share with the workers. They start with the first feed.

    Args:
        options: Of every client (`config.kafka_client`).
        topic: As it was judged at the start.
        rows_max: Messages in a batch.
        wait_seconds: How long Kafka, or one partition, may be silent.
        group: What offsets are committed under.
        now_us: The wall clock, for what tells how far behind this is.
        clock: The brokers' clock, as far as it can be known.
        look_seconds: Between two looks of the keeper.
        consumer: Makes the consumer; tests give one that gets stuck.
    """

    def __init__(
        self,
        options: Options,
        topic: Topic,
        *,
        rows_max: int,
        wait_seconds: float,
        group: str,
        now_us: Callable[[], int],
        clock: LogClock,
        look_seconds: float = LOOK_SECONDS,
        consumer: Callable[..., Any] = KafkaConsumer,
    ) -> None:
        kafka_records.install()
        self._options = options
        self._topic = topic
        self._rows_max = rows_max
        self._wait_seconds = wait_seconds
        self._group = group
        self._now_us = now_us
        self._clock = clock
        self._look_seconds = look_seconds
        self._make_consumer = consumer
        self._feeds: dict[TopicPartition, Feed] = {}
        self._lock = threading.Lock()
        self._changed = False
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._fault: TallyError | None = None
        self._trouble = ""
        self._looked_at = time.monotonic()
        self._surveyed = 0.0
        self._behind: dict[TopicPartition, tuple[int, float]] = {}
        self._committed: dict[TopicPartition, int] = {}

    def add(self, feed: Feed) -> None:
        """Read a partition too, from its feed's position on."""
        self._clock.see(feed.log_time_us)
        with self._lock:
            self._feeds[TopicPartition(self._topic.name, feed.partition)] = feed
            self._changed = True
            if not self._threads:
                self._looked_at = time.monotonic()
                for name, body in (("kafka-reader", self._read), ("kafka-keeper", self._keep)):
                    thread = threading.Thread(target=body, name=name, daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def check(self) -> None:
        """Called by workers at every poll.

        Raises:
            TallyError: what is wrong with Kafka; the flow has to stop.
        """
        if self._fault is not None:
            raise self._fault
        silent = time.monotonic() - self._looked_at
        if silent > self._wait_seconds + self._look_seconds:
            why = reason(self._looked_at, self._trouble or "it hangs")
            raise unusable(self._options, f"no answer for {silent:.0f} s ({why})")

    def lags(self) -> dict[int, Lag]:
        """How far each partition of this process is behind; may be asked by any thread."""
        now_us = self._now_us()
        return {feed.partition: feed.lag(now_us) for feed in self._all().values()}

    def ends(self) -> list[tuple[int, int]]:
        """Of each partition, the offset after the last message that can be read, as the keeper saw it last."""
        return [(feed.partition, feed.ends.stable) for feed in self._all().values() if feed.ends is not None]

    def silent_seconds(self) -> float:
        """Since the keeper last had an answer."""
        return time.monotonic() - self._looked_at

    def close(self) -> None:
        """End the threads; waits a few seconds for them at most."""
        self._closing.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS_MAX)

    def _all(self) -> dict[TopicPartition, Feed]:
        with self._lock:
            return dict(self._feeds)

    # --- the reader

    def _read(self) -> None:
        consumer: Any = None
        while not self._closing.is_set() and self._fault is None:
            try:
                if consumer is None:
                    consumer = self._make_consumer(**self._options, **self._consumer_options())
                    self._changed = True
                self._poll(consumer)
            except TallyError as error:
                self._fault = error
            except Exception as error:  # whatever a client of this age may raise: a new one begins at the feeds' ends
                self._fault = self._final(error) or self._fault
                self._trouble = f"{type(error).__name__}: {error}"
                logger.warning("reading %s: %s", self._topic.name, self._trouble)
                _close(consumer)
                consumer = None
                self._closing.wait(BACKOFF_SECONDS)
        _close(consumer)

    def _consumer_options(self) -> dict[str, Any]:
        """`group_id` stays unset: reading must not depend on a coordinator."""
        return {
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "fetch_max_wait_ms": FETCH_WAIT_MS_MAX,
            "fetch_min_bytes": FETCH_BYTES_MIN,
            "fetch_max_bytes": FETCH_BYTES_MAX,
            "max_partition_fetch_bytes": PARTITION_FETCH_BYTES_MAX,
            "request_timeout_ms": REQUEST_SECONDS_MAX * 1000,
            "bootstrap_timeout_ms": CONNECT_SECONDS_MAX * 1000,
            "reconnect_backoff_max_ms": 1000,
            "metadata_max_age_ms": 30_000,
            "metrics_enabled": False,
        }

    def _poll(self, consumer: Any) -> None:
        feeds = self._all()
        if self._changed:
            self._changed = False
            consumer.assign(list(feeds))
            for partition, feed in feeds.items():
                consumer.seek(partition, feed.position)
        # Not by pause() and resume(): kafka-python 3.0.12 never again returns a partition that was resumed half read.
        if any(feed.full for feed in feeds.values()):
            self._closing.wait(ROOM_SECONDS)
            return
        found = consumer.poll(timeout_ms=int(POLL_SECONDS_MAX * 1000), max_records=self._rows_max)
        if not found or time.monotonic() - self._surveyed > SURVEY_SECONDS:
            self._surveyed = time.monotonic()
            moved: Collection[TopicPartition] = feeds  # markers and aborted messages move a position too
        else:
            moved = found
        for partition in moved:
            feed = feeds[partition]
            position = consumer.position(partition, timeout_ms=0)
            if position is not None and position > feed.position:
                feed.put(fetched(feed.position, position, found.get(partition, [])))

    def _final(self, error: Exception) -> TallyError | None:
        """What to say of an error that a new consumer does not cure; None of any other."""
        name = self._topic.name
        match error:
            case OffsetOutOfRangeError():
                ((partition, offset),) = error.args[0].items()
                return TallyError(
                    f"{name}/{partition.partition}: offset {offset} is not there any more. Kafka deleted messages "
                    "before they were counted (retention, kafka-delete-records), or lost some. Start again: the start "
                    "says which, and what to do."
                )
            case LogTruncationError():
                return TallyError(
                    f"topic {name}: a new leader lacks messages that were read already ({error}): an unclean leader "
                    "election lost them. The ledger has them; events that take their offsets would be hidden. Restore "
                    "the lost replica, or start a new deployment."
                )
            case AuthorizationError():
                return TallyError(f"topic {name}: this user may not read it ({error}): allow Read on the topic")
            case UnsupportedCodecError():
                return TallyError(f"topic {name}: messages are compressed in a way that is not installed here: {error}")
        return None

    # --- the keeper

    def _keep(self) -> None:
        client: KafkaAdminClient | None = None
        while not self._closing.is_set() and self._fault is None:
            try:
                if client is None:
                    client = connect(self._options, CONNECT_SECONDS_MAX)
                self._look(client)
                self._looked_at, self._trouble = time.monotonic(), ""
                self._commit(client)
            except Exception as error:  # the bound is kept by `check`
                self._trouble = f"{type(error).__name__}: {error}"
                _close(client)
                client = None
            self._closing.wait(self._look_seconds)
        _close(client)

    def _look(self, client: KafkaAdminClient) -> None:
        """See where the partitions end, and whether the topic is what it was.

        Raises:
            KafkaError: no or no full answer.
        """
        feeds = self._all()
        looked_us, begun_us = self._now_us(), self._clock.now_us()
        high = _ends(client, feeds, IsolationLevel.READ_UNCOMMITTED)
        stable = _ends(client, feeds, IsolationLevel.READ_COMMITTED)
        self._clock.see(_newest_us(client, self._topic))
        waits_for_workers = any(feed.full for feed in feeds.values())
        for partition, feed in feeds.items():
            feed.ends = Ends(begun_us, high[partition], stable[partition])
            if feed.taken >= high[partition]:
                feed.caught_up_us = looked_us
            self._watch(partition, feed, waits_for_workers)
        self._compare(describe(client, self._topic.name))

    def _watch(self, partition: TopicPartition, feed: Feed, waits_for_workers: bool) -> None:
        """Notice a partition that has messages and is not read."""
        assert feed.ends is not None
        if feed.position >= feed.ends.stable or waits_for_workers:
            self._behind.pop(partition, None)
            return
        position, since = self._behind.get(partition, (-1, 0.0))
        if position != feed.position:
            self._behind[partition] = feed.position, time.monotonic()
        elif time.monotonic() - since > self._wait_seconds:
            self._fault = TallyError(
                f"{self._topic.name}/{partition.partition}: the messages from offset {feed.position} to "
                f"{feed.ends.stable} are there, but reading has brought none of them for {self._wait_seconds:g} s "
                f"({self._trouble or 'the consumer is stuck'}). Start again; if it stops at the same offset, look at "
                "that message."
            )

    def _compare(self, found: tuple[str, int] | None) -> None:
        """Notice that the topic was deleted, made again or given more partitions."""
        known = self._topic
        if found is None:
            self._fault = TallyError(f"topic {known.name} was deleted while it was read: restore it")
        elif found[0] != known.id:
            self._fault = recreated(known.name, found[0], known.id)
        elif found[1] != known.partitions:
            self._fault = TallyError(
                f"topic {known.name} now has {found[1]} partitions, and this run reads {known.partitions}: start "
                "again, so that the new ones are read too, from their beginning (a supervisor does that by itself)"
            )

    def _commit(self, client: KafkaAdminClient) -> None:
        """Tell tools that show lag how far snapshots are stored."""
        wanted = {partition: feed.durable for partition, feed in self._all().items() if feed.durable is not None}
        if wanted == self._committed:
            return
        offsets = {partition: OffsetAndMetadata(offset, "", None) for partition, offset in wanted.items()}
        try:
            answers = client.alter_group_offsets(self._group, offsets)
            refused = {answer.__name__ for answer in answers.values() if answer is not NoError}
            if refused:
                raise KafkaError(", ".join(sorted(refused)))
            self._committed = wanted
        except RetriableError as error:  # a coordinator that is just being found, or made
            logger.debug("offsets of group %s: %s", self._group, error)
        except (KafkaError, KeyError) as error:
            logger.warning(
                "offsets of group %s could not be committed (counting is not affected): %s", self._group, error
            )


def _ends(
    client: KafkaAdminClient, partitions: Collection[TopicPartition], isolation: IsolationLevel
) -> dict[TopicPartition, int]:
    answer = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST), isolation)
    return {partition: int(found.offset) for partition, found in answer.items()}


def _newest_us(client: KafkaAdminClient, topic: Topic) -> int:
    """The newest log time in any partition of the topic; negative if it is empty."""
    partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
    answer = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.MAX_TIMESTAMP))
    return max(int(found.timestamp) for found in answer.values()) * 1000


def _close(client: Any) -> None:
    if client is not None:
        with suppress(Exception):  # it may be the one that is broken
            client.close()
