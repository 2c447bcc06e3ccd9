"""Killed at any moment while it reads Kafka, also with the broker: the tables are the oracle's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.deployment import run_with_kills
from tests.faults.kafka_deployment import KafkaDeployment
from tests.faults.report import Report
from tests.flows.kafka_logs import recent
from tests.services.kafka import Kafka
from tests.workload import kitchen_sink_catalog

SEED = 20_27
EVENTS = 400


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
    deployment = KafkaDeployment(
        tmp_path / "deployment",
        [],
        kitchen_sink_catalog(),
        workers=2,
        batch_rows_max=30,
        kafka=kafka,
        messages=tuple(messages),
        topic=topic,
        breaks_broker=breaks_broker,
    )
    seconds = run_with_kills(deployment, SEED, 4)
    found, oracle = deployment.compared()
    report.compare(fault, "goes on at its snapshot", found, oracle, seconds)
