"""From Kafka to every table: stopped, resumed and rescaled, the rows are the oracle's."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from domain.ports import TallyError
from flows.run import run
from flows.start import Deployment, start
from tests import workload
from tests.flows.kafka_logs import LARGE, PARTITIONS, SECONDS_MAX, log_of, recent, send
from tests.flows.places import Place, check
from tests.oracle import Tables, compute_log
from tests.oracle.events import payloads
from tests.services.kafka import Kafka
from tests.tables import expected_tables, read_tables

CATALOG = workload.kitchen_sink_catalog()
SEED = 41


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

    def run_until(
        self, done: Callable[[Deployment], bool], workers: int = 1, *, rebuilds: bool = False, **more: Any
    ) -> Tables:
        """Run, stop once a condition holds, and read the tables."""
        stop = threading.Event()
        settings = self.settings(**more)
        with start(
            settings, catalog=CATALOG, source="kafka", stop=stop, rebuilds=rebuilds, workers=workers
        ) as deployment:

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
    messages = recent(SEED, 250)
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
