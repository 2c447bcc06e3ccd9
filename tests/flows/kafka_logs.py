"""Topics full of the workload's messages, with transactions in between, and what a plain consumer sees of them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests import workload
from tests.oracle.events import lines
from tests.services.kafka import Kafka

PARTITIONS = 3
SPAN_US = 34 * workload.DAY_US
SECONDS_MAX = 120
LARGE: dict[str, Any] = {"message_timestamp_type": "LogAppendTime", "max_message_bytes": 4 * 1024 * 1024}
"""Settings of a topic that takes every message of the workload."""


def recent(seed: int, count: int) -> list[list[bytes]]:
    """Messages for each partition, whose events lie between what is just too late and what is too far ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "START", time.time_ns() // 1000 - SPAN_US)
        patch.setattr(workload, "SPAN_US", SPAN_US)
        contents = workload.generate(seed, count, subjects=21, files=PARTITIONS)
    return [lines(content) for content in contents]


def send(kafka: Kafka, topic: str, messages: list[list[bytes]], rng: random.Random) -> None:
    """Send messages in order, many of them in transactions, with aborted ones between."""
    common = {"bootstrap_servers": kafka.bootstrap, "acks": "all", "max_request_size": 4 * 1024 * 1024}
    with (
        closing(KafkaProducer(**common, linger_ms=2)) as plain,
        closing(KafkaProducer(**common, transactional_id=f"tx-{topic}", linger_ms=2)) as careful,
    ):
        careful.init_transactions()
        for partition, values in enumerate(messages):
            rest = list(values)
            while rest:
                size = rng.randint(1, 40)
                some, rest = rest[:size], rest[size:]
                if rng.random() < 0.3:
                    _transaction(careful, topic, partition, [b'{"aborted":1}'] * rng.randint(1, 3), commit=False)
                if rng.random() < 0.3:
                    _transaction(careful, topic, partition, some, commit=True)
                else:
                    for value in some:
                        plain.send(topic, value, partition=partition)
                    plain.flush()


def _transaction(producer: Any, topic: str, partition: int, values: list[bytes], *, commit: bool) -> None:
    producer.begin_transaction()
    for value in values:
        producer.send(topic, value, partition=partition)
    producer.flush()
    if commit:
        producer.commit_transaction()
    else:
        producer.abort_transaction()


class Message(NamedTuple):
    """As the oracle reads it."""

    partition: int
    offset: int
    log_time_us: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def log_of(kafka: Kafka, topic: str, count: int, partitions: int = PARTITIONS) -> list[Message]:
    """What a plain consumer sees of the topic."""
    found: list[Message] = []
    with KafkaConsumer(
        bootstrap_servers=kafka.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    ) as consumer:
        consumer.assign([TopicPartition(topic, partition) for partition in range(partitions)])
        deadline = time.monotonic() + SECONDS_MAX
        while len(found) < count:
            for records in consumer.poll(timeout_ms=500).values():
                found += [Message(r.partition, r.offset, r.timestamp * 1000, r.value, r.headers) for r in records]
            assert time.monotonic() < deadline
    return found
