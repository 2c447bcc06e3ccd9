"""A deployment that reads a topic, as `tests.faults.deployment` has it for files."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec

from tests.audit import audit
from tests.faults.deployment import RUN_SECONDS_MAX, Deployment
from tests.flows.kafka_logs import LARGE, PARTITIONS, log_of, send
from tests.oracle import Tables, compute_log
from tests.services.kafka import Kafka
from tests.tables import expected_tables


@dataclass
class KafkaDeployment(Deployment):
    """The input is a topic, which grows while runs come and go."""

    kafka: Kafka | None = None
    messages: tuple[list[bytes], ...] = ()
    topic: str = "faults"
    breaks_broker: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "catalog.yaml").write_text(self.catalog, encoding="utf-8")
        self._given = [0] * len(self.messages)
        self._draw = random.Random(self.topic)
        self.broker.create_topic(self.topic, PARTITIONS, **LARGE)

    @property
    def broker(self) -> Kafka:
        assert self.kafka is not None
        return self.kafka

    def grow(self, share: float) -> None:
        if self.breaks_broker and share > 0:
            self.broker.kill()
            self.broker.start()
        ends = [int(len(values) * share) for values in self.messages]
        parts = [values[start:end] for values, start, end in zip(self.messages, self._given, ends, strict=True)]
        send(self.broker, self.topic, parts, self._draw)
        self._given = ends

    @property
    def source(self) -> str:
        return "kafka"

    @property
    def settings(self) -> dict[str, str]:
        return {
            **super().settings,
            "TALLY_KAFKA_BROKERS": self.broker.bootstrap,
            "TALLY_KAFKA_TOPIC": self.topic,
            "TALLY_KAFKA_GROUP": self.topic,
            "TALLY_SIGNALS_TOPIC": f"{self.topic}-signals",
        }

    def finish(self, share: float = 1.0) -> None:
        """Run until everything is counted and durable, and stop as an operator would."""
        self.grow(share)
        process = self.start()
        wanted = self._ends()
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while self.broker.committed(self.topic, self.topic) != wanted:
            assert process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(RUN_SECONDS_MAX) == 0, self.log

    def _ends(self) -> dict[int, int]:
        places = [TopicPartition(self.topic, partition) for partition in range(PARTITIONS)]
        with self.broker.admin() as admin:
            found: dict[Any, Any] = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
        return {place.partition: int(at.offset) for place, at in found.items()}

    def compared(self) -> tuple[Tables, Tables]:
        """What the tables hold, which the auditor has passed, and what the oracle makes of the topic."""
        found = self.tables()
        log = log_of(self.broker, self.topic, sum(map(len, self.messages)))
        audited = audit([(0, self.catalog)], self.topic, log, found)
        assert not audited.violations, str(audited)
        oracle = expected_tables(compute_log([(0, self.catalog)], self.topic, log))
        events = [{key: row["events"] for key, row in tables.progress.items()} for tables in (found, oracle)]
        assert events[0] == events[1]
        oracle.progress = (
            found.progress
        )  # transactions' markers and the log time of an idle partition are not in the log
        return found, oracle
