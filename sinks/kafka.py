"""The Kafka sink: every signal to a topic, keyed by its subject.

A signal is sent as soon as it is known; a producer's own thread does the sending, so the flow does not wait. At
a barrier every one that was sent must have been acknowledged by all in-sync replicas, else the flow stops and
resumes at its last snapshot, from which it sends them again under the same ids.

The producer is idempotent: its own retries neither repeat nor reorder messages. So on one run signals of a
subject come once and in order; a restart may repeat some. What the producer cannot settle by itself within the
stated bound (a fatal state, a lost epoch, a message that expired) fails a future, and so ends the run: sending
again in its place could repeat or reorder, and a restart sorts it out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError

from domain.ports import TallyError
from domain.quota import Signal, Watched
from domain.signals_json import CONTENT_TYPE, signal_event
from domain.values import DAY_US
from sinks.partitions import SharedSink

RETENTION_MS = 14 * DAY_US // 1000
"""Of a topic made here: consumers may be away for two weeks."""

UNACKNOWLEDGED_MAX = 100_000
"""A flow that finds more signals than this unacknowledged waits."""

_HEADERS = [("content-type", CONTENT_TYPE.encode())]
_RECONNECT_MS_MAX = 1000
_REQUEST_MS_MAX = 10_000


class KafkaOutlet:
    """One producer and what it has not acknowledged. For any number of threads.

    Args:
        options: Keyword arguments of kafka-python's clients: addresses and security.
        topic: Must exist.
        wait_seconds: How long Kafka may take for one message, its retries included.
        told: Called with each signal that was acknowledged.
        producer: Makes the producer; for tests.

    Raises:
        TallyError: Kafka cannot be reached.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        topic: str,
        wait_seconds: float,
        told: Callable[[Signal], None] = lambda signal: None,
        producer: Callable[..., Any] = KafkaProducer,
    ) -> None:
        self._told = told
        self._topic = topic
        self._wait_seconds = wait_seconds
        self._address = _address(options)
        wait_ms = int(wait_seconds * 1000)
        try:
            self._producer: Any = producer(
                **options,
                enable_idempotence=True,
                acks="all",
                linger_ms=0,
                delivery_timeout_ms=wait_ms,
                request_timeout_ms=min(_REQUEST_MS_MAX, wait_ms),
                max_block_ms=wait_ms,
                bootstrap_timeout_ms=wait_ms,
                reconnect_backoff_max_ms=_RECONNECT_MS_MAX,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except KafkaError as error:
            raise self._failure(error) from error
        self._lock = threading.Lock()
        self._sent: deque[Any] = deque()

    def write(self, items: list[Watched]) -> None:
        """Send the signals among the items. Waits only while very many are unacknowledged."""
        for item in items:
            for signal in item.signals:
                self._send(signal)

    def flush(self) -> None:
        """Return once all that was sent before is acknowledged; raises what failed."""
        give_up = time.monotonic() + self._wait_seconds
        with self._lock:
            sent, self._sent = self._sent, deque()
        for future in sent:
            self._settle(future, give_up)

    def abandon(self) -> None:
        """End without waiting for what is under way; raises nothing, may be called again."""
        with suppress(Exception):
            try:
                self._producer.close(timeout=0)
            except KafkaError:  # something is under way: closing gives up before it ends the thread
                self._producer._sender.force_close()
                self._producer.close(timeout=1)

    def _send(self, signal: Signal) -> None:
        oldest = None
        try:
            sent = self._producer.send(
                self._topic, key=signal.subject.encode(), value=signal_event(signal), headers=_HEADERS
            )
        except KafkaError as error:
            raise self._failure(error) from error
        sent.add_callback(lambda _: self._told(signal))
        with self._lock:
            self._sent.append(sent)
            if len(self._sent) > UNACKNOWLEDGED_MAX:
                oldest = self._sent.popleft()
        if oldest is not None:
            self._settle(oldest, time.monotonic() + self._wait_seconds)

    def _settle(self, future: Any, give_up: float) -> None:
        try:
            future.get(timeout=max(0.0, give_up - time.monotonic()))
        except KafkaError as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> TallyError:
        return TallyError(
            f"Kafka at {self._address} did not take a signal for topic {self._topic} within {self._wait_seconds:g} s "
            f"({error}). Nothing is lost: the flow resumes at its last snapshot once Kafka "
            "answers. See that the brokers run, and that the user may write to the topic."
        )


class KafkaSink(SharedSink[Watched]):
    """Sends signals to a topic.

    Args:
        options: Keyword arguments of kafka-python's clients: addresses and security.
        topic: Must exist (`ensure_topic`).
        wait_seconds: How long Kafka may take for one message, its retries included.
        told: Called with each signal that was acknowledged, by another thread; quick, and raises nothing.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        topic: str,
        wait_seconds: float,
        told: Callable[[Signal], None] = lambda signal: None,
    ) -> None:
        super().__init__(lambda: KafkaOutlet(options, topic=topic, wait_seconds=wait_seconds, told=told))


def ensure_topic(
    options: Mapping[str, Any], topic: str, *, partitions: int, replication: int | None, wait_seconds: float
) -> bool:
    """Make a topic for signals if there is none of that name; returns whether it was made.

    An existing one is left as it is.

    Raises:
        TallyError: Kafka cannot be reached, or refuses.
    """
    wait_ms = int(wait_seconds * 1000)
    wanted = {
        "num_partitions": partitions,
        "replication_factor": replication or -1,
        "configs": {
            "cleanup.policy": "delete",
            "retention.ms": str(RETENTION_MS),
            "message.timestamp.type": "LogAppendTime",  # a broker refuses the times of a clock that is an hour ahead
        },
    }
    try:
        with KafkaAdminClient(**options, bootstrap_timeout_ms=wait_ms) as admin:
            if topic in admin.list_topics():
                return False
            try:
                admin.create_topics({topic: wanted}, wait_for_metadata=True)
            except TopicAlreadyExistsError:  # another process was faster
                return False
            return True
    except KafkaError as error:
        raise TallyError(
            f"Kafka at {_address(options)}: topic {topic} for signals could not be found or made "
            f"({error}). See that the brokers run and can be reached from here; make the topic "
            "by hand if this user may not, or name another one with TALLY_SIGNALS_TOPIC."
        ) from error


def _address(options: Mapping[str, Any]) -> str:
    return ",".join(options["bootstrap_servers"])
