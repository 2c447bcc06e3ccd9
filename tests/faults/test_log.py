"""A log that is not what it was: made again, with other partitions, with times that go back, gone in part."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions, OffsetSpec

from domain.ports import TallyError
from engines.clickhouse import EmbeddedClickHouse
from engines.data_directory import DataDirectory
from flows import inputs
from flows.reclaim import ledger_of
from flows.start import Deployment
from sinks.migrate import DATABASE
from sources.kafka import KafkaSource
from tests.audit import audit
from tests.faults.deployment import kill_after_snapshot
from tests.faults.kafka_deployment import KafkaDeployment
from tests.faults.report import Report
from tests.flows.conftest import place as place  # a fixture
from tests.flows.kafka_logs import LARGE, PARTITIONS, Message, log_of, recent, send
from tests.flows.places import Place
from tests.flows.test_kafka import CATALOG, KafkaPlace
from tests.oracle import Tables, compute_log
from tests.oracle.events import payloads
from tests.services.kafka import Kafka
from tests.tables import expected_tables, read_tables
from tests.workload import kitchen_sink_catalog

HOUR_US = 3_600_000_000


def oracle_of(found: Tables, topic: str, log: list[Message]) -> Tables:
    """What the log comes to; transactions' markers and the log times of idle partitions are not in it."""
    audited = audit([(0, CATALOG)], topic, log, found)
    assert not audited.violations, str(audited)
    oracle = expected_tables(compute_log([(0, CATALOG)], topic, log))
    assert {p: row["events"] for p, row in oracle.progress.items()} == {
        p: row["events"] for p, row in found.progress.items() if row["events"]
    }
    oracle.progress = found.progress
    return oracle


def events_in(messages: list[list[bytes]]) -> int:
    return sum(len(payloads(value)) for values in messages for value in values)


def has_read(count: int) -> Callable[[Deployment], bool]:
    return lambda deployment: deployment.input.events_read() >= count


def has_counted(log: KafkaPlace) -> Callable[[Deployment], bool]:
    """Whether all that stands in the log now is counted."""
    places = [TopicPartition(log.topic, p) for p in range(PARTITIONS)]
    with log.kafka.admin() as admin:
        ends = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    wanted = {at.partition: int(ends[at].offset) for at in places}

    def done(deployment: Deployment) -> bool:
        time.sleep(0.2)
        with deployment.client() as client:
            rows = client.query("SELECT log_partition, next_offset FROM progress FINAL").result_rows
        return {int(partition): int(offset) for partition, offset in rows} == wanted

    return done


@pytest.fixture
def log(place: Place, kafka: Kafka, request: pytest.FixtureRequest) -> KafkaPlace:
    found = KafkaPlace(place.data, kafka, f"log-{request.node.name}"[:100])
    kafka.create_topic(found.topic, PARTITIONS, **LARGE)
    return found


@pytest.mark.faults
def test_all_but_clickhouse_is_lost_before_kafka(tmp_path: Path, kafka: Kafka, report: Report) -> None:
    """Retention has taken what was counted, so only the ledger can tell it. Killed in the middle of the rebuild."""
    deployed = KafkaDeployment(
        tmp_path / "deployment", [], kitchen_sink_catalog(), workers=2, batch_rows_max=20, kafka=kafka,
        messages=tuple(recent(71, 200)), topic="log-lost",
    )  # fmt: skip
    deployed.finish(0.5)
    log = log_of(kafka, deployed.topic, sum(deployed._given))
    counted = {key[1]: row["next_offset"] for key, row in deployed.tables().progress.items()}
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(deployed.topic, p): offset for p, offset in counted.items()})
    for lost in ("recovery", "redis"):
        shutil.rmtree(deployed.data / lost)
    for record in ("topic.json", "deployment.json"):
        (deployed.data / record).unlink()
    assert "has no saved state: going on would count from zero" in deployed.refuse()
    deployed.grow(1.0)
    kill_after_snapshot(deployed, rebuilds=True)
    begun = time.monotonic()
    deployed.finish()
    seconds = time.monotonic() - begun
    found = deployed.tables()
    rest = log_of(kafka, deployed.topic, sum(map(len, deployed.messages)) - len(log))
    fault = "all but ClickHouse is lost, and Kafka deleted what was counted"
    oracle = oracle_of(found, deployed.topic, [*log, *rest])
    report.compare(fault, "refused; rebuilt with --source ledger", found, oracle, seconds)


@pytest.mark.faults
def test_a_topic_that_was_made_again(log: KafkaPlace, report: Report) -> None:
    """Also one that was filled again to more than was read, and also where nobody knows the old topic's id."""
    kafka, messages = log.kafka, recent(72, 60)
    send(kafka, log.topic, messages, random.Random(1))
    before = log.run_until(has_read(events_in(messages)))
    oracle = oracle_of(before, log.topic, log_of(kafka, log.topic, sum(map(len, messages))))
    kafka.delete_topic(log.topic)
    kafka.create_topic(log.topic, PARTITIONS, **LARGE)
    send(kafka, log.topic, [list(reversed(values)) * 2 for values in messages], random.Random(2))
    for rebuilds in (False, True):
        with pytest.raises(TallyError, match=r"was deleted\s+and made again"):
            log.run_until(has_read(0), rebuilds=rebuilds)
    (log.data / "topic.json").unlink()
    with pytest.raises(TallyError, match="does not hold the message that the ledger has of it"):
        log.run_until(has_read(0), rebuilds=True)
    shutil.rmtree(log.data / "recovery")
    with pytest.raises(TallyError, match="does not hold the message that the ledger has of it"):
        log.run_until(has_read(0), rebuilds=True)
    report.compare("a topic is deleted and made again", "refused", tables(log), oracle, None)


def tables(log: KafkaPlace) -> Tables:
    with EmbeddedClickHouse(log.data / "clickhouse") as engine, engine.client(DATABASE) as client:
        return read_tables(client)


@pytest.mark.faults
def test_a_topic_that_is_made_again_under_a_running_flow(log: KafkaPlace, report: Report) -> None:
    """Within a look's time, and filled to more than was read: the run stops, and nothing goes on from it."""
    kafka, messages = log.kafka, recent(73, 60)
    send(kafka, log.topic, messages, random.Random(1))

    def made_again(deployment: Deployment) -> bool:
        if not has_read(events_in(messages))(deployment):
            return False
        kafka.delete_topic(log.topic)
        kafka.create_topic(log.topic, PARTITIONS, **LARGE)
        send(kafka, log.topic, [values * 2 for values in messages], random.Random(2))
        time.sleep(30)
        return True

    with pytest.raises(TallyError, match=r"was deleted|is not there any more.*Start again"):
        log.run_until(made_again)
    with pytest.raises(TallyError, match=r"was deleted\s+and made again"):
        log.run_until(has_read(0))
    report.add(
        "a topic is deleted, made again and filled under a running flow",
        "stops",
        lost=0,
        doubled=0,
        seconds_to_recover=None,
    )


class TurnedBack(KafkaConsumer):  # type: ignore[misc]
    """Sees the log of a topic whose leader changed, from its middle on, to one whose clock is an hour behind."""

    def poll(self, *arguments: Any, **named: Any) -> Any:
        found = super().poll(*arguments, **named)
        return {at: list(map(turned_back, records)) for at, records in found.items()}


def turned_back(record: Any) -> Any:
    return record._replace(timestamp=record.timestamp - HOUR_US // 1000) if record.offset >= 40 else record


@pytest.mark.faults
def test_log_times_that_go_back(log: KafkaPlace, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is judged by its own log time; windows are forgotten by the greatest so far."""
    kafka, messages = log.kafka, recent(74, 150)
    monkeypatch.setattr(inputs, "KafkaSource", partial(KafkaSource, consumer=TurnedBack))
    send(kafka, log.topic, messages, random.Random(1))
    log.run_until(has_read(events_in(messages) // 3), batch_rows_max=20)
    log.run_until(has_read(0), rebuilds=True, batch_rows_max=20)
    found = log.run_until(has_counted(log))
    seen = [
        m._replace(log_time_us=m.log_time_us - HOUR_US) if m.offset >= 40 else m
        for m in log_of(kafka, log.topic, sum(map(len, messages)))
    ]
    for p in range(PARTITIONS):
        mine = [m.log_time_us for m in seen if m.partition == p]
        assert mine != sorted(mine), "no time goes back"
    fault = "log times go back in a partition"
    report.compare(
        fault, "each message by its own; forgotten by the greatest", found, oracle_of(found, log.topic, seen), None
    )


@pytest.mark.faults
def test_a_partition_that_is_idle_and_one_that_is_added(log: KafkaPlace, report: Report) -> None:
    kafka, messages = log.kafka, recent(75, 90)
    messages[2] = []
    send(kafka, log.topic, messages, random.Random(1))

    def added(deployment: Deployment) -> bool:
        if not has_read(events_in(messages))(deployment):
            return False
        with kafka.admin() as admin:
            admin.create_partitions({log.topic: NewPartitions(total_count=PARTITIONS + 1)})
        time.sleep(30)
        return True

    with pytest.raises(TallyError, match="now has 4 partitions"):
        log.run_until(added)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", max_request_size=4 * 1024 * 1024)
    more = [value for values in recent(76, 60) for value in values]
    for value in more:
        producer.send(log.topic, value, partition=PARTITIONS)
    producer.close()
    found = log.run_until(has_read(events_in([more])), workers=2)
    consumed = log_of(kafka, log.topic, sum(map(len, messages)) + len(more), PARTITIONS + 1)
    fault = "an idle partition, and one that is added in mid-run"
    report.compare(
        fault, "starts again, and reads it from its beginning", found, oracle_of(found, log.topic, consumed), None
    )


@pytest.mark.faults
def test_an_old_recovery_directory(log: KafkaPlace, report: Report) -> None:
    """What followed is read again, unless claims were forgotten that it would be compared with, or Kafka lacks it."""
    kafka, messages, rng = log.kafka, recent(77, 90), random.Random(1)
    send(kafka, log.topic, [values[: len(values) // 2] for values in messages], rng)
    half = sum(events_in([values[: len(values) // 2]]) for values in messages)
    log.run_until(has_read(half))
    shutil.copytree(log.data / "recovery", log.data.parent / "backup")
    send(kafka, log.topic, [values[len(values) // 2 :] for values in messages], rng)
    rest = events_in(messages) - half

    def restore() -> None:
        shutil.rmtree(log.data / "recovery")
        shutil.copytree(log.data.parent / "backup", log.data / "recovery")

    log.run_until(has_read(rest))
    restore()
    found = log.run_until(has_read(rest))
    oracle = oracle_of(found, log.topic, log_of(kafka, log.topic, sum(map(len, messages))))
    fault = "an old recovery directory is restored, before Kafka"
    report.compare(fault, "what followed is read again; else refused, and rebuilt", found, oracle, None)

    restore()
    with EmbeddedClickHouse(log.data / "clickhouse") as engine, engine.client(DATABASE) as client:
        ledger = ledger_of(client, log.topic)
    later_us = time.time_ns() // 1000 + 365 * 24 * HOUR_US
    DataDirectory(log.data).write("forgotten", {"ledger": ledger, "kept_since_us": later_us})
    with pytest.raises(TallyError, match=r"were forgotten since: repeats .* might count twice.*--source ledger"):
        log.run_until(has_read(0))
    (log.data / "forgotten.json").unlink()
    with kafka.admin() as admin:
        ends = {TopicPartition(log.topic, p): row["next_offset"] for (_, p), row in found.progress.items()}
        admin.delete_records(ends)
    with pytest.raises(TallyError, match=r"If the ledger has them, the saved state is an old one.*--source ledger"):
        log.run_until(has_read(0))
    found = log.run_until(has_read(len(oracle.events)), rebuilds=True)
    report.compare(fault, "what followed is read again; else refused, and rebuilt", found, oracle, None)
