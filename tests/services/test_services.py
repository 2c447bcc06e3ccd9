"""The services that other tests rely on: they keep data over restarts, and say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from engines.clickhouse import connect
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka

_ROOT = Path(__file__).resolve().parents[2]


def produce(kafka: Kafka, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    producer.send(topic, value).get(timeout=30)
    producer.close()


@pytest.mark.faults
def test_kafka_keeps_messages_over_a_stop_and_a_kill(kafka: Kafka) -> None:
    kafka.create_topic("services-restarts", message_timestamp_type="LogAppendTime")
    bootstrap = kafka.bootstrap
    produce(kafka, "services-restarts", b"1")
    kafka.stop()
    kafka.start()
    produce(kafka, "services-restarts", b"2")
    kafka.kill()
    kafka.start()
    assert kafka.bootstrap == bootstrap
    partition = TopicPartition("services-restarts", 0)
    with KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None) as consumer:
        consumer.assign([partition])
        values: list[bytes] = []
        while len(values) < 2:
            values += [record.value for record in consumer.poll(timeout_ms=10_000)[partition]]
    assert values == [b"1", b"2"]


def test_a_deleted_topic_can_be_made_again(kafka: Kafka) -> None:
    kafka.create_topic("services-twice", 2)
    kafka.delete_topic("services-twice")
    kafka.create_topic("services-twice", 1)


def test_clickhouse_keeps_rows_over_a_restart(clickhouse: ClickHouse) -> None:
    url = clickhouse.url
    with connect(url) as client:
        client.command("CREATE TABLE services_kept (x UInt8) ENGINE = MergeTree ORDER BY x")
        client.insert("services_kept", [[1]], column_names=["x"])
    clickhouse.stop()
    clickhouse.start()
    assert clickhouse.url == url
    with connect(url) as client:
        assert client.query("SELECT x FROM services_kept").result_rows == [(1,)]
        client.command("DROP TABLE services_kept")


@pytest.mark.parametrize(("ci", "outcome"), [("", "SKIPPED"), ("1", "ERROR")])
def test_a_missing_java_is_said_and_fails_where_ci_demands_it(ci: str, outcome: str, tmp_path: Path) -> None:
    here = Path(__file__).relative_to(_ROOT)
    command = [
        sys.executable,
        "-m",
        "pytest",
        f"{here}::test_a_deleted_topic_can_be_made_again",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "PATH": str(tmp_path), "CI": ci}
    said = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    assert outcome in said.stdout and "`java` is not on PATH" in said.stdout, said.stdout + said.stderr
    assert said.returncode == (1 if ci else 0)
