"""From Kafka to every table: stopped, resumed and rescaled, the rows are the oracle's."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from config.settings import Settings
from domain.ports import TallyError
from flows.run import run
from flows.start import Deployment, start
from tests import workload
from tests.flows.places import Place, check
from tests.oracle import Tables, compute_log
from tests.oracle.events import lines, payloads
from tests.services.kafka import Kafka
from tests.tables import expected_tables, read_tables

CATALOG = workload.kitchen_sink_catalog()
SEED = 41
PARTITIONS = 3
SPAN_US = 34 * workload.DAY_US
SECONDS_MAX = 120
LARGE = {"message_timestamp_type": "LogAppendTime", "max_message_bytes": 4 * 1024 * 1024}


def recent(count: int) -> list[list[bytes]]:
    """Messages for each partition, whose events lie between what is just too late and what is too far ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "START", time.time_ns() // 1000 - SPAN_US)
        patch.setattr(workload, "SPAN_US", SPAN_US)
        contents = workload.generate(SEED, count, subjects=21, files=PARTITIONS)
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


def log_of(kafka: Kafka, topic: str, count: int) -> list[Message]:
    """What a plain consumer sees of the topic."""
    found: list[Message] = []
    with KafkaConsumer(
        bootstrap_servers=kafka.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    ) as consumer:
        consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
        deadline = time.monotonic() + SECONDS_MAX
        while len(found) < count:
            for records in consumer.poll(timeout_ms=500).values():
                found += [Message(r.partition, r.offset, r.timestamp * 1000, r.value, r.headers) for r in records]
            assert time.monotonic() < deadline
    return found


class KafkaPlace:
    """Runs over a topic until a condition holds."""

    def __init__(self, data: Path, kafka: Kafka, topic: str) -> None:
        self.data = data
        self.kafka = kafka
        self.topic = topic

    def settings(self, **more: Any) -> Settings:
        common: dict[str, Any] = {
            "shards": 8,
            "batch_rows_max": 100,
            "epoch_seconds": 0.2,
            "kafka_brokers": self.kafka.bootstrap,
            "kafka_topic": self.topic,
            "signals_topic": f"{self.topic}-signals",
        }
        return Settings(data_dir=self.data, **common | more)

    def run_until(self, done: Callable[[Deployment], bool], workers: int = 1, **more: Any) -> Tables:
        """Run, stop once a condition holds, and read the tables."""
        stop = threading.Event()
        settings = self.settings(**more)
        with start(settings, catalog=CATALOG, source="kafka", stop=stop, workers=workers) as deployment:

            def watch() -> None:
                deadline = time.monotonic() + SECONDS_MAX
                while not done(deployment) and time.monotonic() < deadline:
                    time.sleep(0.01)
                stop.set()

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            run(deployment)
            watcher.join()
            with deployment.client() as client:
                return read_tables(client)


@pytest.fixture
def kafka_place(place: Place, kafka: Kafka, request: pytest.FixtureRequest) -> KafkaPlace:
    """A place beside the one whose fixture cleans up after runs."""
    return KafkaPlace(place.data, kafka, f"flow-{request.node.name}"[:100])


def test_stopped_resumed_and_rescaled_the_tables_are_the_oracles(kafka_place: KafkaPlace, kafka: Kafka) -> None:
    kafka.create_topic(kafka_place.topic, PARTITIONS, **LARGE)
    messages = recent(250)
    whole = sum(len(payloads(value)) for values in messages for value in values)
    rng = random.Random(SEED)
    send(kafka, kafka_place.topic, [values[: len(values) // 2] for values in messages], rng)
    tables = kafka_place.run_until(lambda deployment: deployment.input.events_read() > whole // 5)
    read = sum(row["events"] for row in tables.progress.values())
    assert 0 < read < whole

    rest = threading.Thread(
        target=send, args=(kafka, kafka_place.topic, [values[len(values) // 2 :] for values in messages], rng)
    )
    rest.start()
    tables = kafka_place.run_until(lambda deployment: deployment.input.events_read() >= whole - read, workers=2)
    rest.join()

    log = log_of(kafka, kafka_place.topic, sum(map(len, messages)))
    wanted = expected_tables(compute_log([(0, CATALOG)], kafka_place.topic, log))
    for key, row in wanted.progress.items():
        found = tables.progress[key]
        assert found["next_offset"] >= row["next_offset"], "markers may follow the last message"
        assert {**found, "next_offset": 0} == {**row, "next_offset": 0}
    wanted.progress = tables.progress
    check(tables, wanted)
    reasons = {row["reason"] for row in tables.rejects.values()}
    assert {"duplicate", "conflict", "too_late", "time_in_future", "malformed", "oversized"} <= reasons
    assert tables.usage and tables.rated_usage and tables.signals


def test_a_new_deployment_makes_its_topic_and_knows_it_again(kafka_place: KafkaPlace, kafka: Kafka) -> None:
    idle = lambda deployment: set(deployment.input.lags()) == {0, 1}  # noqa: E731
    kafka_place.run_until(idle, kafka_partitions=2)
    with kafka.admin() as admin:
        (made,) = admin.describe_topics([kafka_place.topic])
    assert len(made["partitions"]) == 2
    kafka.delete_topic(kafka_place.topic)
    with pytest.raises(TallyError, match=r"has no topic 'flow-.*one that has read from it does not"):
        kafka_place.run_until(idle)
    kafka.create_topic(kafka_place.topic, 2, **LARGE)
    with pytest.raises(TallyError, match=r"was deleted\s+and made again"):
        kafka_place.run_until(idle)
