"""Kafka's client as the emitter uses it: idempotent, acks=all, keyed as every other client keys."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from tallyflow.events import EVENT_BYTES_MAX

OWN_OPTIONS = frozenset(
    {
        "bootstrap_servers",
        "acks",
        "allow_auto_create_topics",
        "bootstrap_timeout_ms",
        "delivery_timeout_ms",
        "enable_idempotence",
        "kafka_client",
        "key_serializer",
        "linger_ms",
        "max_block_ms",
        "max_request_size",
        "partitioner",
        "retries",
        "transactional_id",
        "value_serializer",
    }
)
"""Options of kafka-python that the emitter's promises rest on."""
KAFKA_OPTIONS = frozenset(KafkaProducer.DEFAULT_CONFIG) - OWN_OPTIONS

BROKER_SECONDS_MAX = 5.0
"""How long the background thread waits for a broker before it looks at its buffer again."""
REQUEST_SECONDS_MAX = 30.0
RECONNECT_SECONDS_MAX = 2.0
BATCH_BYTES = 128 * 1024


@dataclass(frozen=True)
class Options:
    """What an emitter was made with; checked by `UsageEmitter`."""

    brokers: str
    topic: str
    source: str
    linger_seconds: float
    buffer_events_max: int
    buffer_bytes_max: int
    block_seconds_max: float
    delivery_seconds_max: float
    exit_seconds_max: float
    kafka_options: Mapping[str, Any] = field(repr=False)  # may hold a password


class Producer(KafkaProducer):  # type: ignore[misc]
    """A producer that only its owner closes.

    kafka-python closes one from an exit handler and from its finaliser, too early for the emitter's
    own last flush, and in a forked child at the cost of the parent's connections; and its `close`
    ends nothing if the flush before it times out.
    """

    def flush(self, timeout: float | None = None) -> None:
        with suppress(KafkaTimeoutError):
            super().flush(timeout)

    def close(self, timeout: float | None = None, null_logger: bool = False) -> None:
        if not null_logger:
            super().close(timeout)


def open_producer(options: Options) -> Producer:
    """Connect, waiting at most `BROKER_SECONDS_MAX`.

    Raises:
        KafkaError: no broker answered, or the credentials are refused.
    """
    linger_ms = int(options.linger_seconds * 1000)
    delivery_ms = int(options.delivery_seconds_max * 1000)
    settings = {
        "request_timeout_ms": max(1, min(int(REQUEST_SECONDS_MAX * 1000), delivery_ms - linger_ms)),
        "reconnect_backoff_max_ms": int(RECONNECT_SECONDS_MAX * 1000),
        "batch_size": BATCH_BYTES,
        "metrics_enabled": False,
        "client_id": "tallyflow-sdk",
        **options.kafka_options,
        "bootstrap_servers": options.brokers.split(","),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": linger_ms,
        "delivery_timeout_ms": delivery_ms,
        "max_request_size": 2 * EVENT_BYTES_MAX,
        # A topic made by accident lacks the settings that tallyflow needs.
        "allow_auto_create_topics": False,
        "bootstrap_timeout_ms": min(int(BROKER_SECONDS_MAX * 1000), delivery_ms),
        "max_block_ms": min(int(BROKER_SECONDS_MAX * 1000), delivery_ms),
    }
    return Producer(**settings)
