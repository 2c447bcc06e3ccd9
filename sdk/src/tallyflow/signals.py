"""`subscribe()`: receive signals (limits reached, spend thresholds) from Kafka or from Redis.

From **Kafka**, at least once: the group's offset is committed after a signal was handled, so one whose
handling was cut short comes again. From **Redis**, best effort: what is sent while nobody is connected
is missed, and nothing is repeated; the quota states (`Quotas`) show where things stand all the same.
Of either, a signal that was handled by this stream before is left out, as long as it is among the last
`remember_ids_max`. tallyflow repeats a signal's id after a restart, so this is not rare; who acts on
the outside world should keep ids of its own, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, Literal, Protocol, TypeVar

import orjson
import redis
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient
from kafka.structs import MemberState, OffsetAndMetadata

from tallyflow._names import broker_list

log = logging.getLogger("tallyflow")

POLL_SECONDS_MAX = 0.5
"""How long it takes at most until `stop` is noticed, while no signals come."""
COMMIT_SECONDS_MAX = 1.0
CONNECT_SECONDS_MAX = 10.0
RECONNECT_SECONDS_MAX = 2.0
JOIN_POLL_SECONDS = 2.0
REJOIN_SECONDS_MAX = 30.0
POLL_SIGNALS_MAX = 100

T = TypeVar("T")


class SignalsUnreachable(ConnectionError):
    """Kafka or Redis could not be reached at the start, or refused the subscription."""


@dataclass(frozen=True)
class Signal:
    """Something to act on. Quantities are exact; for `spend.threshold_reached` they are amounts of money."""

    id: str
    """The same whenever the signal is repeated."""
    type: str
    """`quota.threshold_reached`, `quota.exceeded`, `spend.threshold_reached` ...; new ones may come."""
    subject: str
    time: datetime
    feature: str
    """The entitlement's feature, or the alert's key."""
    meter: str
    period_start: datetime
    period_end: datetime
    threshold: Decimal
    allowance: Decimal
    used: Decimal
    """What was used when the signal was sent."""
    catalog_version: int


def read_signal(raw: bytes) -> Signal:
    """A signal as tallyflow sends it.

    Raises:
        ValueError: it is none.
    """
    try:
        event = orjson.loads(raw)
        data = event["data"]
        return Signal(
            str(event["id"]),
            str(event["type"]),
            str(event["subject"]),
            _instant(event["time"]),
            str(data["feature"]),
            str(data["meter"]),
            _instant(data["period_start"]),
            _instant(data["period_end"]),
            Decimal(data["threshold"]),
            Decimal(data["allowance"]),
            Decimal(data["used"]),
            int(data["catalog_version"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not a signal: {error!r}") from error


def subscribe(
    *,
    brokers: str | Iterable[str] | None = None,
    group: str | None = None,
    topic: str = "usage.signals",
    start: Literal["earliest", "latest"] = "earliest",
    kafka_options: Mapping[str, Any] | None = None,
    redis_url: str | None = None,
    channel: str = "usage.signals",
    remember_ids_max: int = 100_000,
) -> SignalStream:
    """Subscribe to signals; either `brokers` and `group`, or `redis_url`.

    Args:
        brokers: Kafka, as `host:port`, several separated by commas or in a list.
        group: the consumer group. Its members share the signals: give each program that needs all of them a group
            of its own.
        start: where a group that is new begins: at the oldest signal that Kafka has, or with the next one.
        kafka_options: more options for kafka-python's consumer, such as `security_protocol`.
        redis_url: Redis, or any node of a Redis Cluster.
        remember_ids_max: how many ids are kept to recognise repeats; about 150 bytes each.

    Raises:
        ValueError: the arguments are no use.
        SignalsUnreachable: no broker or Redis answered within 10 seconds.
    """
    if (brokers is None) == (redis_url is None):
        raise ValueError("say where signals come from: either brokers (and group), or redis_url")
    if remember_ids_max < 1:
        raise ValueError(f"remember_ids_max is {remember_ids_max}: use 1 or more")
    if redis_url is not None:
        return SignalStream(_RedisSource(redis_url, channel), remember_ids_max)
    assert brokers is not None
    if not group:
        raise ValueError("group is missing: name the consumer group whose members share the signals")
    if start not in ("earliest", "latest"):
        raise ValueError(f"start is {start!r}: use earliest or latest")
    source = _KafkaSource(broker_list(brokers), topic, group, start, dict(kafka_options or {}))
    return SignalStream(source, remember_ids_max)


class SignalStream:
    """Signals, one after the other, until `stop`. For one thread; `stop` may be called from any.

    ```
    with subscribe(brokers="kafka:9092", group="notifier") as signals:
        for signal in signals:
            notify(signal)
    ```

    A signal counts as handled when the next one is asked for. Leaving the loop by `break` or by an exception leaves
    the current signal unhandled: from Kafka it comes again. Handling may take up to five minutes; after that Kafka
    gives the signal to another member of the group.
    """

    def __init__(self, source: _Source[Any], remember_ids_max: int) -> None:
        self._source = source
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._remember_ids_max = remember_ids_max
        self._stopped = threading.Event()
        self.duplicates = 0
        """Repeats that were left out."""
        self.unreadable = 0
        """Messages that are no signals; logged and left out."""

    def __iter__(self) -> Iterator[Signal]:
        while not self._stopped.is_set():
            for message in self._source.poll(POLL_SECONDS_MAX):
                signal = self._read(message.value)
                if signal is not None:
                    yield signal
                    self._remember(signal.id)
                self._source.handled(message)
                if self._stopped.is_set():
                    return

    def run(self, handler: Callable[[Signal], object]) -> None:
        """Call the handler with each signal until `stop`. What it raises ends the run, with the signal unhandled."""
        for signal in self:
            handler(signal)

    def stop(self) -> None:
        """End the iteration after the signal that is being handled. May be called in a signal handler."""
        self._stopped.set()

    def close(self) -> None:
        """Say which signals were handled, and disconnect."""
        self.stop()
        self._source.close()

    def __enter__(self) -> SignalStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, raw: bytes) -> Signal | None:
        """The signal, if it is one and new."""
        try:
            signal = read_signal(raw)
        except ValueError as error:
            self.unreadable += 1
            log.warning("%s", error)
            return None
        if signal.id in self._seen:
            self.duplicates += 1
            return None
        return signal

    def _remember(self, id: str) -> None:
        self._seen[id] = None
        if len(self._seen) > self._remember_ids_max:
            self._seen.popitem(last=False)


@dataclass(frozen=True)
class _Message(Generic[T]):
    value: bytes
    place: T


class _Source(Protocol[T]):
    """Where messages come from."""

    def poll(self, seconds_max: float) -> list[_Message[T]]:
        """The next messages; none if none came in time."""
        ...

    def handled(self, message: _Message[T]) -> None: ...

    def close(self) -> None: ...


class _KafkaSource:
    """A member of a consumer group that commits what was handled, at most `COMMIT_SECONDS_MAX` later."""

    def __init__(self, brokers: list[str], topic: str, group: str, start: str, options: dict[str, Any]) -> None:
        self._handled: dict[Any, int] = {}
        self._committed_at = time.monotonic()
        self._brokers, self._topic = brokers, topic
        self._settings = {
            "reconnect_backoff_max_ms": int(RECONNECT_SECONDS_MAX * 1000),
            "metrics_enabled": False,
            "client_id": "tallyflow-sdk",
            **options,
            "bootstrap_servers": brokers,
            "group_id": group,
            "auto_offset_reset": start,
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "isolation_level": "read_committed",
            "max_poll_records": POLL_SIGNALS_MAX,
            "bootstrap_timeout_ms": int(CONNECT_SECONDS_MAX * 1000),
        }
        self._consumer = self._open()
        self._stable_at = time.monotonic()

    def poll(self, seconds_max: float) -> list[_Message[tuple[Any, int]]]:
        self._commit(COMMIT_SECONDS_MAX)
        wait = seconds_max if self._is_member() else max(seconds_max, JOIN_POLL_SECONDS)
        found = self._consumer.poll(timeout_ms=int(wait * 1000))
        return [
            _Message(record.value or b"", (partition, record.offset))
            for partition, records in found.items()
            for record in records
        ]

    def _open(self) -> Any:
        clients = []

        def client(**configs: Any) -> Any:
            clients.append(KafkaNetClient(**configs))
            return clients[-1]

        try:
            return KafkaConsumer(self._topic, **self._settings, kafka_client=client)
        except KafkaError as error:
            for left in clients:  # its thread would go on for ever
                left.close()
            raise SignalsUnreachable(f"cannot read signals from {','.join(self._brokers)}: {error}") from error

    def _is_member(self) -> bool:
        """Whether the group is stable. A new consumer if it has not become so for long.

        In kafka-python 3.0.12 a member whose joining does not end within one `poll` may never be done with it: it
        reads, but may not commit, and has no heartbeat.
        """
        now = time.monotonic()
        if self._consumer.group_metadata().state == MemberState.STABLE:
            self._stable_at = now
            return True
        if now - self._stable_at > REJOIN_SECONDS_MAX:
            log.warning("this member cannot join its group: it leaves and joins anew")
            self._handled.clear()
            self._consumer.close(autocommit=False, timeout_ms=2000)
            self._consumer = self._open()
            self._stable_at = time.monotonic()
        return False

    def handled(self, message: _Message[tuple[TopicPartition, int]]) -> None:
        partition, offset = message.place
        self._handled[partition] = offset + 1
        self._commit(COMMIT_SECONDS_MAX)

    def close(self) -> None:
        self._commit(0)
        self._consumer.close(autocommit=False, timeout_ms=2000)

    def _commit(self, seconds_since_last: float) -> None:
        if not self._handled or time.monotonic() < self._committed_at + seconds_since_last:
            return
        self._committed_at = time.monotonic()
        mine = self._consumer.assignment() or set()
        self._handled = {place: offset for place, offset in self._handled.items() if place in mine}
        offsets = {place: OffsetAndMetadata(offset, "", -1) for place, offset in self._handled.items()}
        try:
            if offsets:
                self._consumer.commit(offsets, timeout_ms=5000)
        except KafkaError as error:  # tried again with the next
            log.warning("handled signals could not be committed and may come again: %s", error)
        else:
            self._handled.clear()


class _RedisSource:
    """A channel of Redis, subscribed to again whenever the connection breaks."""

    def __init__(self, url: str, channel: str) -> None:
        self._redis: Any = redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS_MAX, protocol=2)
        self._channel = channel
        self._pubsub: Any = None
        try:
            self._subscribe()
        except (redis.RedisError, OSError) as error:
            raise SignalsUnreachable(f"cannot subscribe to {channel!r}: {error}") from error

    def poll(self, seconds_max: float) -> list[_Message[None]]:
        try:
            if self._pubsub is None:
                self._subscribe()
            found = self._pubsub.get_message(timeout=seconds_max)
        except (redis.RedisError, OSError) as error:
            if self._pubsub is not None:
                log.warning("the channel %r broke off; signals sent meanwhile are missed: %s", self._channel, error)
            self._disconnect()
            time.sleep(seconds_max)
            return []
        return [_Message(found["data"], None)] if found and found["type"] == "message" else []

    def handled(self, message: _Message[None]) -> None:
        """Nothing remembers it."""

    def close(self) -> None:
        self._disconnect()
        self._redis.close()

    def _subscribe(self) -> None:
        pubsub = self._redis.pubsub(ignore_subscribe_messages=False)
        pubsub.subscribe(self._channel)
        answer = pubsub.get_message(timeout=CONNECT_SECONDS_MAX)
        if answer is None or answer["type"] != "subscribe":
            raise redis.ConnectionError("Redis did not confirm the subscription")
        self._pubsub = pubsub

    def _disconnect(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
