"""Topics with messages in them, and what a source makes of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer

from domain.values import RawBatch
from sources.kafka import KafkaPartition, KafkaSource, KafkaState
from sources.kafka_topic import Topic, open_topic
from tests.services.kafka import Kafka

SECONDS_MAX = 60
LOG_APPEND_TIME = {"message_timestamp_type": "LogAppendTime"}


def options(kafka: Kafka) -> dict[str, Any]:
    return {"bootstrap_servers": [kafka.bootstrap], "client_id": "tests", "security_protocol": "PLAINTEXT"}


def topic(kafka: Kafka, name: str) -> Topic:
    return open_topic(options(kafka), name, plan=None, seconds_max=30)


def producer(kafka: Kafka, **more: Any) -> AbstractContextManager[Any]:
    """A producer that waits for the broker's answer when it is closed."""
    return closing(KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=5, **more))


def produce(kafka: Kafka, name: str, values: Sequence[bytes | None], partition: int = 0, **more: Any) -> None:
    """Send messages to a partition; each is stored when this returns."""
    with producer(kafka) as client:
        for future in [client.send(name, value, partition=partition, **more) for value in values]:
            future.get(timeout=SECONDS_MAX)


@dataclass
class Read:
    """What a source emitted: batches by partition, and the states after them."""

    batches: dict[int, list[RawBatch]] = field(default_factory=dict)
    states: dict[int, KafkaState] = field(default_factory=dict)

    def payloads(self, partition: int = 0) -> list[bytes]:
        return [payload for batch in self.batches.get(partition, []) for payload in batch.payloads]

    def offsets(self, partition: int = 0) -> list[int]:
        return [offset for batch in self.batches.get(partition, []) for offset in batch.offsets]

    def attributes(self, partition: int = 0) -> list[dict[str, str] | None]:
        return [
            attributes
            for batch in self.batches.get(partition, [])
            for attributes in batch.attributes or [None] * len(batch.payloads)
        ]


class Scene:
    """A source over a topic, polled by hand as a worker would."""

    def __init__(
        self,
        kafka: Kafka,
        name: str,
        states: Mapping[int, KafkaState] | None = None,
        rows_max: int = 100,
        build: bool = True,
        **more: Any,
    ) -> None:
        settings: dict[str, Any] = {"wait_seconds": 30, "group": f"group-{name}", "look_seconds": 0.1} | more
        self.stop = threading.Event()
        self.source = KafkaSource(
            options(kafka), topic(kafka, name), batch_rows_max=rows_max, stop=self.stop, **settings
        )
        self.read = Read()
        self.parts: dict[int, KafkaPartition] = {}
        if build:
            self.build(states or {})

    def build(self, states: Mapping[int, KafkaState]) -> None:
        """Begin every partition at its state."""
        for part in self.source.list_parts():
            self.parts[int(part)] = self.source.build_part("source", part, states.get(int(part)))

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def poll(self) -> None:
        """Ask every partition once, and check what holds for every batch."""
        for partition, part in self.parts.items():
            for batch in part.next_batch():
                check_batch(batch, self.read.batches.get(partition, []))
                self.read.batches.setdefault(partition, []).append(batch)
            self.read.states[partition] = part.snapshot()

    def until(self, done: Callable[[Read], object]) -> Read:
        """Poll until a condition holds."""
        deadline = time.monotonic() + SECONDS_MAX
        while not done(self.read):
            self.poll()
            assert time.monotonic() < deadline, f"not in {SECONDS_MAX} s; read so far: {self.read.states}"
            time.sleep(0.002)
        return self.read


def check_batch(batch: RawBatch, before: Sequence[RawBatch]) -> None:
    """Batches of a partition follow each other without a gap, and say the truth about themselves."""
    columns: list[list[Any] | None] = [batch.offsets, batch.indexes, batch.payloads, batch.log_times_us]
    assert {len(column) for column in columns if column is not None} == {len(batch.payloads)}
    assert batch.attributes is None or len(batch.attributes) == len(batch.payloads)
    assert all(batch.start_offset <= offset < batch.next_offset for offset in batch.offsets)
    positions = list(zip(batch.offsets, batch.indexes, strict=True))
    assert positions == sorted(set(positions))
    assert batch.log_time_us is not None and batch.log_time_us >= max(batch.log_times_us or [], default=0)
    if before:
        last = before[-1]
        assert batch.start_offset == last.next_offset and batch.log_time_us >= (last.log_time_us or 0)
        assert batch.events == last.events + len(batch.payloads)
        assert batch.messages == last.messages + len(set(batch.offsets))


def read_all(kafka: Kafka, name: str, count: int, states: Mapping[int, KafkaState] | None = None, **more: Any) -> Read:
    """Read until so many events came in, of all partitions."""
    with Scene(kafka, name, states, **more) as scene:
        return scene.until(lambda read: sum(len(b.payloads) for some in read.batches.values() for b in some) >= count)
