"""Usage as products send it: by the SDK, over HTTP, and by producers that make mistakes; drawn from a seed.

Times are near the wall clock, since the broker stamps what it appends. What became of an event is therefore
worked out from the topic itself, by the oracle, and not from the seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from kafka import KafkaConsumer, TopicPartition

SUBJECTS = 12
_BAD = (
    b"",
    b"null",
    b"{",
    b"\xff\xfe",
    b'{"specversion":"1.0"}',
    b"[]",
    b'[1,"two",{"specversion":"0.3"}]',
)


@dataclass(frozen=True)
class Usage:
    """One event, as the SDK takes it."""

    type: str
    subject: str
    data: dict[str, Any]
    id: str
    time: datetime

    def json(self, source: str) -> bytes:
        """As a structured CloudEvent."""
        event = {
            "specversion": "1.0",
            "id": self.id,
            "source": source,
            "type": self.type,
            "subject": self.subject,
            "time": self.time.isoformat(),
            "data": self.data,
        }
        return json.dumps(event, default=float).encode()


@dataclass
class Traffic:
    """An endless stream of usage with repeats, conflicts, late events and events from the future."""

    seed: int
    _draw: random.Random = field(init=False)
    _sent: list[Usage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def events(self, count: int) -> Iterator[Usage]:
        """The next events."""
        for _ in range(count):
            chance = self._draw.random()
            if self._sent and chance < 0.08:
                yield self._draw.choice(self._sent)
            elif self._sent and chance < 0.10:
                old = self._draw.choice(self._sent)
                yield Usage(old.type, old.subject, {**old.data, "bytes": 77_777}, old.id, old.time)
            else:
                yield self._new()

    def bad(self, count: int) -> Iterator[bytes]:
        """Messages of which nothing can be billed."""
        return (self._draw.choice(_BAD) for _ in range(count))

    def _new(self) -> Usage:
        draw = self._draw
        data: dict[str, Any] = {"bytes": draw.randrange(2_000), "region": draw.choice(("eu", "us"))}
        if draw.random() < 0.5:
            data["cost"] = Decimal(draw.randrange(10**6)) / 10**4
        if draw.random() < 0.5:
            data["user"] = f"user-{draw.randrange(9)}"
        if draw.random() < 0.02:
            data["region"] = "mars"
        back = draw.choice((0, 0, 0, 1, 60, 3_600, 86_400, 2 * 86_400, 5 * 86_400, -1_800))
        time = datetime.now(UTC) - timedelta(seconds=back + draw.random())
        kind = "api.request" if draw.random() > 0.01 else "api.unknown"
        usage = Usage(kind, f"customer-{draw.randrange(SUBJECTS)}", data, f"{self.seed}-{len(self._sent)}", time)
        self._sent.append(usage)
        return usage


@dataclass(frozen=True)
class Message:
    """One record of a topic."""

    partition: int
    offset: int
    log_time_us: int
    value: bytes | None
    headers: list[tuple[str, bytes]]


def read_topic(brokers: str, topic: str) -> list[Message]:
    """Everything that a topic holds now, in order of partition and offset."""
    consumer = KafkaConsumer(
        bootstrap_servers=brokers, enable_auto_commit=False, isolation_level="read_committed", group_id=None
    )
    try:
        parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        found: list[Message] = []
        while any(consumer.position(part) < ends[part] for part in parts):
            for records in consumer.poll(timeout_ms=200).values():
                found += [Message(r.partition, r.offset, r.timestamp * 1000, r.value, list(r.headers)) for r in records]
    finally:
        consumer.close()
    return sorted(found, key=lambda message: (message.partition, message.offset))
