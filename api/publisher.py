"""Events into Kafka, acknowledged one by one; never blocks the event loop.

An idempotent producer with `acks=all`: a message counts as stored when the broker says that every in-sync replica has
it. Messages are keyed by subject and placed by kafka-python's default partitioner (murmur2, as Java's), so that an
event and its repeats share a partition with those of any other producer.

Kafka that does not answer: `store` returns within `wait_seconds`, with a fault for every message that is not known to
be stored. Such a message may be stored all the same, now or later; sent again with the same id it counts once. A
keeper thread watches the topic, so that requests are refused at once while Kafka is away.

A producer that failed once is replaced, whatever it was: kafka-python 3.0.12 never sends again once a batch that was on
its way has expired (its producer id is reset, but never asked for again), nor after the broker has refused a message
for its size. So the topic's limit is asked for, and what is larger is refused before it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import kafka.errors
from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

CHECK_SECONDS: Final = 2.0
"""How often the topic is looked at."""

_BATCH_BYTES_MAX: Final = 128 * 1024
_MESSAGE_BYTES_MAX: Final = 1_048_588
"""Kafka's default for a topic, where its setting may not be read."""
_THREADS: Final = 4
_CLOSE_SECONDS: Final = 5.0
_LIMIT: Final = "max.message.bytes"

log = logging.getLogger("tally.ingest")


@dataclass(frozen=True, slots=True)
class Message:
    """One event for the log."""

    subject: str
    value: bytes
    headers: list[tuple[str, bytes]]


class Unavailable(Exception):
    """Kafka cannot be reached at the moment; nothing was sent."""


class Fault(Exception):
    """Why one message is not known to be stored."""

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large
        """The topic takes no message of this size; it was not sent."""


class _Producer(KafkaProducer):  # type: ignore[misc]  # untyped
    """A producer that can be closed: kafka-python's own `close` gives up when what it flushes is not sent in time."""

    message_bytes_max = 0

    def flush(self, timeout: float | None = None) -> None:
        with contextlib.suppress(kafka.errors.KafkaTimeoutError):
            super().flush(timeout)


class _Delivery:
    """The outcome of some messages: counts down as their futures end, in whatever thread."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self.faults: list[Fault | None] = [Fault("no answer from Kafka in time")] * count
        self._left = count
        self._done = done
        self._lock = threading.Lock()

    def stored(self, index: int, _metadata: object) -> None:
        self._end(index, None)

    def failed(self, index: int, error: Exception) -> None:
        self._end(index, Fault(f"{type(error).__name__}: {error}"))

    def too_large(self, index: int, bytes_max: int) -> None:
        self._end(index, Fault(f"the topic takes messages of at most {bytes_max} bytes", too_large=True))

    def _end(self, index: int, fault: Fault | None) -> None:
        self.faults[index] = fault
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._done()


class Publisher:
    """Stores messages in one topic, from `start()` to `close()`.

    Args:
        options: What every client of kafka-python is given: brokers and security.
        topic: Where events go; it must exist.
        wait_seconds: Longest time that `store` takes.
    """

    def __init__(self, options: Mapping[str, Any], topic: str, wait_seconds: float) -> None:
        self._options = dict(options)
        self._topic = topic
        self._wait_seconds = wait_seconds
        self._producer: _Producer | None = None
        self._fault = "Kafka was not reached yet"
        self._failed: _Producer | None = None
        self._wake = threading.Event()
        self._closing = False
        self._executor = ThreadPoolExecutor(_THREADS, "publish")
        self._keeper = threading.Thread(target=self._keep, name="kafka-keeper", daemon=True)

    def start(self) -> None:
        """Begin to look for Kafka; returns at once."""
        self._keeper.start()

    @property
    def fault(self) -> str:
        """Why nothing can be stored at the moment; "" if it can."""
        return self._fault

    async def store(self, messages: Sequence[Message], released: Callable[[], None]) -> list[Fault | None]:
        """Send messages in order, and wait until Kafka has them.

        Args:
            messages: At least one.
            released: Called in the event loop once the producer holds none of them any more; maybe after this returned.

        Returns:
            For each message None if it is stored, else why that is not known.

        Raises:
            Unavailable: Kafka is away; nothing was sent (`released` was called).
        """
        producer = self._producer
        if producer is None or self._fault:
            released()
            raise Unavailable(self._fault)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def end() -> None:
            released()
            ended.set()

        delivery = _Delivery(len(messages), lambda: _call_in(loop, end))
        sending = self._executor.submit(self._send, producer, messages, delivery)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await asyncio.wrap_future(sending)
                await ended.wait()
        except TimeoutError:
            if sending.cancelled():  # it never began
                released()
        faults = list(delivery.faults)
        if any(fault is not None and not fault.too_large for fault in faults):
            self._failed = producer
            self._wake.set()
        return faults

    def _send(self, producer: _Producer, messages: Sequence[Message], delivery: _Delivery) -> None:
        """Hand all messages to the producer; what it refuses is a failed delivery. Runs in a thread."""
        broken: Exception | None = None
        for index, message in enumerate(messages):
            if broken is not None:
                delivery.failed(index, broken)
                continue
            try:
                future = producer.send(
                    self._topic, value=message.value, key=message.subject.encode(), headers=message.headers
                )
            except kafka.errors.MessageSizeTooLargeError:
                delivery.too_large(index, producer.message_bytes_max)
            except Exception as error:  # whatever it is, nothing was sent, and the next would meet it too
                broken = error
                delivery.failed(index, error)
            else:
                future.add_callback(delivery.stored, index)
                future.add_errback(delivery.failed, index)

    def close(self) -> None:
        """Stop; what is not stored by then fails."""
        self._closing = True
        self._wake.set()
        self._keeper.join(_CLOSE_SECONDS)
        self._executor.shutdown(wait=False, cancel_futures=True)
        producer, self._producer = self._producer, None
        if producer is not None:
            _close(producer, _CLOSE_SECONDS)

    def _keep(self) -> None:
        """The keeper thread: knows whether Kafka is there, and keeps a producer that works."""
        admin: KafkaAdminClient | None = None
        while not self._closing:
            self._wake.clear()
            try:
                if admin is None:
                    wait_ms = int(self._wait_seconds * 1000)
                    admin = KafkaAdminClient(**self._client_options(), request_timeout_ms=wait_ms)
                fault = self._topic_fault(admin)
                if not fault:
                    self._refresh_producer(self._message_bytes_max(admin))
                self._set_fault(fault)
            except Exception as error:  # kafka-python raises what it likes; Kafka is away, whatever it was
                self._set_fault(f"Kafka cannot be reached: {type(error).__name__}: {error}")
                _close(admin)
                admin = None
                self._wake.clear()  # a failure is no reason to hurry while Kafka is away
            self._wake.wait(CHECK_SECONDS)
        _close(admin)

    def _topic_fault(self, admin: KafkaAdminClient) -> str:
        (found,) = admin.describe_topics([self._topic])
        if found["error_code"]:
            name = kafka.errors.for_code(found["error_code"]).__name__
            return f"topic {self._topic}: {name}; create it (`tally run` does) or correct TALLY_KAFKA_TOPIC"
        if any(partition["leader_id"] < 0 for partition in found["partitions"]):
            return f"topic {self._topic}: a partition has no leader"
        return ""

    def _message_bytes_max(self, admin: KafkaAdminClient) -> int:
        resource = ConfigResource(ConfigResourceType.TOPIC, self._topic, [_LIMIT])
        try:
            found = admin.describe_configs([resource], config_filter="all")
            return int(found["topic"][self._topic][_LIMIT]["value"])
        except (kafka.errors.AuthorizationError, KeyError):
            return _MESSAGE_BYTES_MAX

    def _refresh_producer(self, message_bytes_max: int) -> None:
        """Make the producer, or replace one that failed or whose topic has another limit."""
        old, failed, self._failed = self._producer, self._failed, None
        if old is not None and old is not failed and old.message_bytes_max == message_bytes_max:
            return
        if old is not None and old is failed:
            log.warning("a message was not stored in time: replacing the Kafka producer")
        wait_ms = int(self._wait_seconds * 1000)
        producer = _Producer(
            **self._client_options(),
            acks="all",
            enable_idempotence=True,
            allow_auto_create_topics=False,
            request_timeout_ms=wait_ms // 2,
            delivery_timeout_ms=wait_ms,
            max_block_ms=wait_ms // 2,
            max_request_size=message_bytes_max,
            batch_size=min(_BATCH_BYTES_MAX, message_bytes_max // 2),
            metrics_enabled=False,
        )
        producer.message_bytes_max = message_bytes_max
        producer.partitions_for(self._topic)  # so that `send` never waits for it
        self._producer = producer
        if old is not None:  # it may still be sending for others
            timer = threading.Timer(self._wait_seconds, _close, (old,))
            timer.daemon = True
            timer.start()

    def _client_options(self) -> dict[str, Any]:
        milliseconds = int(self._wait_seconds * 1000)
        return {"bootstrap_timeout_ms": milliseconds, "reconnect_backoff_max_ms": 1000} | self._options

    def _set_fault(self, fault: str) -> None:
        if fault != self._fault:
            if fault:
                log.warning("not ready: %s", fault)
            else:
                log.info("topic %s can be written to", self._topic)
        self._fault = fault


def _call_in(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
        loop.call_soon_threadsafe(callback)


def _close(client: KafkaProducer | KafkaAdminClient | None, *seconds: float) -> None:
    """Close a client that may be broken; a producer within so many seconds, else at once."""
    if client is None:
        return
    try:
        client.close(*(seconds or (0,)) if isinstance(client, KafkaProducer) else ())
    except Exception as error:  # it is given up anyhow
        log.warning("closing a Kafka client: %s: %s", type(error).__name__, error)
