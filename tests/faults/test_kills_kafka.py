"""Killed at any moment while it reads Kafka, also with the broker: the tables are the oracle's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import OffsetSpec

from tests.faults.deployment import ROOT, Deployment, run_with_kills
from tests.faults.report import Report
from tests.flows.kafka_logs import LARGE, PARTITIONS, log_of, recent, send
from tests.oracle import compute_log
from tests.services.kafka import Kafka
from tests.tables import expected_tables
from tests.workload import kitchen_sink_catalog

SEED = 20_27
EVENTS = 400
RUN_SECONDS_MAX = 300


@dataclass
class KafkaDeployment(Deployment):
    """The input is a topic, which grows while runs come and go."""

    kafka: Kafka | None = None
    messages: tuple[list[bytes], ...] = ()
    topic: str = "crash"
    breaks_broker: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "catalog.yaml").write_text(self.catalog, encoding="utf-8")
        self._given = [0] * len(self.messages)
        self._draw = random.Random(SEED)
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

    def start(self) -> subprocess.Popen[bytes]:
        arguments = ["run", "--data-dir", str(self.data), "--catalog", str(self.folder / "catalog.yaml")]
        settings = {
            "TALLY_EPOCH_SECONDS": "0.3",
            "TALLY_BATCH_ROWS_MAX": str(self.batch_rows_max),
            "TALLY_KAFKA_BROKERS": self.broker.bootstrap,
            "TALLY_KAFKA_TOPIC": self.topic,
            "TALLY_KAFKA_GROUP": self.topic,
            "TALLY_SIGNALS_TOPIC": f"{self.topic}-signals",
        }
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments, "--workers", str(self.workers)],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def finish(self) -> None:
        """Run until everything is counted and durable, and stop as an operator would."""
        self.grow(1.0)
        process = self.start()
        wanted = self._ends()
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while self.broker.committed(self.topic, self.topic) != wanted:
            assert process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(RUN_SECONDS_MAX) == 0, (self.folder / "log").read_text()[-3000:]

    def _ends(self) -> dict[int, int]:
        places = [TopicPartition(self.topic, partition) for partition in range(PARTITIONS)]
        with self.broker.admin() as admin:
            found: dict[Any, Any] = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
        return {place.partition: int(at.offset) for place, at in found.items()}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "breaks_broker"), [("kill -9 at random, from Kafka", False), ("kill -9 of flow and broker", True)]
)
def test_kills_while_kafka_is_read_leave_no_trace(
    tmp_path: Path, kafka: Kafka, report: Report, fault: str, breaks_broker: bool
) -> None:
    print(f"seed {SEED}")
    messages = recent(SEED, EVENTS)
    topic = f"crash-{breaks_broker}"
    catalog = kitchen_sink_catalog()
    deployment = KafkaDeployment(
        tmp_path / "deployment", [], catalog, 2, 30, "", kafka=kafka, messages=tuple(messages), topic=topic,
        breaks_broker=breaks_broker,
    )  # fmt: skip
    seconds = run_with_kills(deployment, SEED, 4)
    found = deployment.tables()
    wanted = expected_tables(compute_log([(0, catalog)], topic, log_of(kafka, topic, sum(map(len, messages)))))
    assert {key: row["events"] for key, row in found.progress.items()} == {
        key: row["events"] for key, row in wanted.progress.items()
    }
    wanted.progress = found.progress
    report.compare(fault, "goes on at its snapshot", found, wanted, seconds)
