"""`tally webhooks`: reads the signals topic and delivers, until it is told to stop.

Guarantees: a signal's offset is committed once every endpoint that wants it took it or has a dead letter
for it; so a signal is delivered at least once, and after a crash some are delivered again, under the same
webhook-id. Signals about a subject reach an endpoint in the order of the topic; one that fails holds back
that subject at that endpoint only. Memory is bounded: with `undelivered_max` signals undelivered it reads
no more, and gives up what has failed for more than a minute.
Failure: a broker that is away is waited for; a group's offset that the topic no longer has is an error in
the log, and reading goes on at the oldest signal there is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import MemberState, OffsetAndMetadata

from domain.instants import parse
from domain.ports import TallyError
from webhooks.deliverer import Deliverer
from webhooks.lanes import Delivery, Ending
from webhooks.progress import Done, Progress

log = logging.getLogger("tally.webhooks")

POLL_SECONDS_MAX = 0.5
BUSY_SECONDS_MAX = 0.02
"""How long an answer may wait to be looked at, and so the next signal of its subject to be sent."""
JOIN_POLL_SECONDS = 1.0
SETTLE_SECONDS = 2.0
REJOIN_SECONDS_MAX = 10.0
COMMIT_SECONDS = 1.0
COMMIT_WAIT_SECONDS_MAX = 5.0
STOP_SECONDS_MAX = 10.0
"""How long requests that are under way may take to end once the service was told to stop."""
CONNECT_SECONDS_MAX = 30.0
POLL_SIGNALS_MAX = 500
SESSION_SECONDS = 10.0
"""How long the signals of a member that died wait until another one, or its successor, gets them."""


def open_consumer(options: Mapping[str, Any], topic: str, group: str) -> KafkaConsumer:
    """A member of the group.

    Raises:
        TallyError: no broker answers, or there is no such topic.
    """
    try:
        consumer = KafkaConsumer(
            **{
                **options,
                "group_id": group,
                "auto_offset_reset": "earliest",
                "enable_auto_commit": False,
                "allow_auto_create_topics": False,
                "isolation_level": "read_committed",
                "max_poll_records": POLL_SIGNALS_MAX,
                "session_timeout_ms": int(SESSION_SECONDS * 1000),
                "bootstrap_timeout_ms": int(CONNECT_SECONDS_MAX * 1000),
                "reconnect_backoff_max_ms": 2000,
                "metrics_enabled": False,
            }
        )
        if topic not in consumer.topics():
            consumer.close(autocommit=False)
            raise TallyError(f"there is no Kafka topic {topic!r}: start the flow first, which makes it")
        consumer.subscribe([topic])
    except KafkaError as error:
        raise TallyError(f"cannot read signals from Kafka: {error}; check TALLY_KAFKA_BROKERS and logins") from error
    return consumer


class Service:
    """Brings signals from a consumer to a deliverer, and commits what has come to its end. For one thread."""

    def __init__(
        self,
        open_consumer: Callable[[], Any],
        make_deliverer: Callable[[Callable[[Delivery, Ending | None], None]], Deliverer],
        undelivered_max: int,
    ) -> None:
        self._open = open_consumer
        self._consumer = open_consumer()
        self._stable_since: float | None = None
        self._unstable_since = time.monotonic()
        self.deliverer = make_deliverer(self._ended)
        self._undelivered_max = undelivered_max
        self._progress: dict[TopicPartition, Progress] = {}
        self._committed: dict[TopicPartition, tuple[int, str]] = {}
        self._committed_at = time.monotonic()
        self.unreadable = 0
        self.standing = self.deliverer.standing()
        """Of each endpoint, a moment ago; for other threads."""
        self.turned_at = time.monotonic()
        """When the service last went round; it does so every few seconds at least."""

    @property
    def is_member(self) -> bool:
        """Whether this member has its share of the signals."""
        return self._stable_since is not None

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop`; then let requests end, and commit."""
        while not stop.is_set():
            due = self.deliverer.step()
            self._read(POLL_SECONDS_MAX if due is None else min(due, POLL_SECONDS_MAX))
            self.turned_at = time.monotonic()
            if self.turned_at >= self._committed_at + COMMIT_SECONDS:
                self._commit()
                self.standing = self.deliverer.standing()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        self.deliverer.step(start=False)
        while self.deliverer.in_flight and time.monotonic() < deadline:
            self.deliverer.wait(0.1)
            self.deliverer.step(start=False)
        self._commit()

    def close(self) -> None:
        """Leave the group, and end connections."""
        self.deliverer.close()
        self._consumer.close(autocommit=False, timeout_ms=int(COMMIT_WAIT_SECONDS_MAX * 1000))

    def _settled(self) -> bool:
        """Whether the membership of the group has been stable for a while. A new consumer if it cannot become so.

        Joining goes on inside of `poll`; in kafka-python 3.0.12 one that does not end within the call may never end:
        the member still reads, but may not commit, and has no heartbeat. So polls are long until the group has
        settled, and a consumer that does not get there is replaced.
        """
        now = time.monotonic()
        if self._consumer.group_metadata().state == MemberState.STABLE:
            self._stable_since = now if self._stable_since is None else self._stable_since
            self._unstable_since = now
            return now - self._stable_since >= SETTLE_SECONDS
        self._stable_since = None
        if now - self._unstable_since > REJOIN_SECONDS_MAX:
            log.warning("this member cannot join its group: it leaves and joins anew")
            self._forget_lost(set())
            self._consumer.close(autocommit=False, timeout_ms=int(COMMIT_WAIT_SECONDS_MAX * 1000))
            self._consumer = self._open()
            self._unstable_since = time.monotonic()
        return False

    def _read(self, seconds_max: float) -> None:
        """Queue what the topic has; nothing while too much is undelivered."""
        settled = self._settled()
        full = len(self.deliverer) >= self._undelivered_max
        if full:
            self._consumer.pause(*(self._consumer.assignment() or ()))
        elif self._consumer.paused():
            self._consumer.resume(*self._consumer.paused())
        busy = full or self.deliverer.in_flight
        wait = min(seconds_max, BUSY_SECONDS_MAX) if busy else seconds_max
        if not settled:
            wait = JOIN_POLL_SECONDS
        found = self._consumer.poll(timeout_ms=int(wait * 1000))
        self._forget_lost(self._consumer.assignment() or set())
        for partition, records in found.items():
            for record in records:
                self._queue(partition, record.offset, record.value or b"")

    def _queue(self, partition: TopicPartition, offset: int, raw: bytes) -> None:
        progress = self._progress.get(partition)
        if progress is None:
            progress = self._progress[partition] = self._begin(partition, offset)
        if progress.was_read(offset):
            return
        if progress.was_done(offset):
            progress.begin(offset, 0)
            return
        signal = _read_signal(raw)
        if signal is None:
            self.unreadable += 1
            log.error("%s/%d/%d is no signal and is left out", *partition, offset)
            progress.begin(offset, 0)
            return
        wanted = self.deliverer.wanted(signal.type, signal.subject)
        progress.begin(offset, len(wanted))
        for endpoint in wanted:
            self.deliverer.add(replace(signal, endpoint=endpoint.name, place=(progress, offset)))

    def _begin(self, partition: TopicPartition, offset: int) -> Progress:
        """What an earlier run has left."""
        found = self._consumer.committed(partition, metadata=True, timeout_ms=int(CONNECT_SECONDS_MAX * 1000))
        if found is None:
            return Progress(offset, Done())
        if found.offset < offset:
            log.error(
                "%s/%d: signals from %d to %d are gone from the topic before they were delivered; "
                "`tally webhooks replay` sends them from ClickHouse",
                *partition,
                found.offset,
                offset,
            )
            return Progress(offset, Done())
        return Progress(offset, Done.read(found.offset, found.metadata or ""))

    def _forget_lost(self, mine: set[TopicPartition]) -> None:
        """Leave partitions that another member has now to that member."""
        lost = self._progress.keys() - mine
        if lost:
            theirs = [self._progress.pop(partition) for partition in lost]
            self.deliverer.take_back(lambda delivery: _place(delivery)[0] in theirs)
            for partition in lost:
                self._committed.pop(partition, None)

    def _ended(self, delivery: Delivery, _: Ending | None) -> None:
        progress, offset = _place(delivery)
        progress.finish(offset)

    def _commit(self) -> None:
        positions = {partition: progress.position() for partition, progress in self._progress.items()}
        changed = {partition: at for partition, at in positions.items() if self._committed.get(partition) != at}
        self._committed_at = time.monotonic()
        if not changed:
            return
        try:
            self._consumer.commit(
                {
                    partition: OffsetAndMetadata(offset, metadata, -1)
                    for partition, (offset, metadata) in changed.items()
                },
                timeout_ms=int(COMMIT_WAIT_SECONDS_MAX * 1000),
            )
        except KafkaError as error:
            log.warning("what was delivered could not be committed, and may be delivered again: %s", error)
        else:
            self._committed.update(changed)


def _read_signal(raw: bytes) -> Delivery | None:
    """A signal, still without endpoint and place; None if it is none."""
    try:
        event = orjson.loads(raw)
        at_us = parse(event["time"])
        key, kind, subject = event["id"], event["type"], event["subject"]
    except (ValueError, KeyError, TypeError):
        return None
    if at_us is None or not all(isinstance(text, str) and text for text in (key, kind, subject)):
        return None
    return Delivery("", key, kind, subject, at_us, raw)


def _place(delivery: Delivery) -> tuple[Progress, int]:
    """What it is a part of: of its partition as it was when it was read."""
    place: Any = delivery.place
    progress, offset = place
    return progress, offset
