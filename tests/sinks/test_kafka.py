"""The Kafka sink against a real broker: at once, in order, and nothing lost while the broker restarts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from domain.ports import TallyError
from domain.quota import Signal
from domain.signals_json import signal_event
from sinks import kafka as sink_module
from sinks.kafka import RETENTION_MS, KafkaSink, ensure_topic
from tests.services.kafka import Kafka
from tests.services.ports import free_ports
from tests.sinks.samples import signal, watched

WAIT_SECONDS = 30.0


def options(bootstrap: str) -> dict[str, Any]:
    return {"bootstrap_servers": [bootstrap], "client_id": "test"}


@pytest.fixture
def topic(kafka: Kafka, request: pytest.FixtureRequest) -> str:
    """A topic of this test, with three partitions."""
    name = f"signals.{request.node.name.partition('[')[0]}"
    assert ensure_topic(options(kafka.bootstrap), name, partitions=3, replication=1, wait_seconds=WAIT_SECONDS)
    return name


@contextmanager
def partitions(kafka: Kafka, topic: str, wait_seconds: float = WAIT_SECONDS) -> Iterator[Any]:
    sink = KafkaSink(options(kafka.bootstrap), topic=topic, wait_seconds=wait_seconds)
    try:
        yield [sink.build_part("step", name, None) for name in sink.list_parts()[:2]]
    finally:
        sink.close()


def of(number: int, subject: str = "a") -> Signal:
    return signal(f"{subject}-{number}")._replace(subject=subject)


def consume(kafka: Kafka, topic: str, count: int, seconds: float = 10) -> list[Any]:
    """The first `count` messages, or what came until the time was over."""
    with KafkaConsumer(bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)])
        found: list[Any] = []
        give_up = time.monotonic() + seconds
        while len(found) < count and time.monotonic() < give_up:
            for records in consumer.poll(timeout_ms=200).values():
                found += records
        return found


def test_a_signal_is_there_before_the_barrier(kafka: Kafka, topic: str) -> None:
    with partitions(kafka, topic) as (part, _):
        part.write_batch([watched(of(1, "käufer"))])
        (record,) = consume(kafka, topic, 1)
        assert record.key == "käufer".encode()
        assert record.value == signal_event(of(1, "käufer"))
        assert record.headers == [("content-type", b"application/cloudevents+json")]
        part.snapshot()


def test_a_clock_that_is_days_ahead_of_the_brokers_holds_up_no_signal(kafka: Kafka, topic: str) -> None:
    """Of a topic on producers' time a broker refuses what is more than an hour ahead."""
    with closing(KafkaProducer(bootstrap_servers=kafka.bootstrap)) as producer:
        ahead_ms = int((time.time() + 50 * 3600) * 1000)
        producer.send(topic, b"signal", timestamp_ms=ahead_ms).get(timeout=WAIT_SECONDS)


def test_a_subjects_signals_stay_in_order_and_in_one_partition(kafka: Kafka, topic: str) -> None:
    """Two workers at once, each with its own subjects, over one producer."""
    with partitions(kafka, topic) as parts:

        def work(part: Any, subjects: str) -> None:
            for number in range(100):
                part.write_batch([watched(*(of(number, subject) for subject in subjects))])
                if number % 25 == 24:
                    part.snapshot()

        threads = [threading.Thread(target=work, args=args) for args in zip(parts, ("abc", "xyz"), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        found = consume(kafka, topic, 600)
    for subject in "abcxyz":
        records = [record for record in found if record.key == subject.encode()]
        assert len({record.partition for record in records}) == 1
        in_order = sorted(records, key=lambda record: record.offset)
        assert [json.loads(record.value)["id"] for record in in_order] == [f"{subject}-{n}" for n in range(100)]


def test_a_broker_that_restarts_between_send_and_barrier_loses_and_repeats_nothing(kafka: Kafka, topic: str) -> None:
    with partitions(kafka, topic) as (part, _):
        part.write_batch([watched(of(0))])
        part.snapshot()
        kafka.kill()
        try:
            began = time.monotonic()
            part.write_batch([watched(*(of(number) for number in range(1, 50)))])
            assert time.monotonic() - began < 1, "the flow does not wait for Kafka but at the barrier"
            barrier = threading.Thread(target=part.snapshot)
            barrier.start()
            barrier.join(0.5)
            assert barrier.is_alive()
        finally:
            kafka.start()
        barrier.join(WAIT_SECONDS)
        assert not barrier.is_alive()
        part.write_batch([watched(of(50))])
        part.snapshot()
        found = consume(kafka, topic, 52, seconds=2)
    assert sorted(json.loads(record.value)["id"] for record in found) == sorted(f"a-{n}" for n in range(51))


def test_a_broker_that_stays_away_stops_the_flow(kafka: Kafka, topic: str) -> None:
    before = threading.active_count()
    with partitions(kafka, topic, wait_seconds=1) as (part, _):
        part.write_batch([watched(of(0))])
        part.snapshot()
        kafka.stop()
        try:
            part.write_batch([watched(of(1))])
            with pytest.raises(TallyError, match=r"did not take a signal for topic .* within 1 s .*Nothing is lost"):
                part.snapshot()
            part.write_batch([watched(of(2))])
            began = time.monotonic()
            part.close()
            assert time.monotonic() - began < 3
        finally:
            kafka.start()
    give_up = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < give_up:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_more_partitions_are_taken_as_they_come(kafka: Kafka, topic: str) -> None:
    with partitions(kafka, topic) as (part, _):
        part.write_batch([watched(of(0))])
        part.snapshot()
        with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
            admin.create_partitions({topic: 5})
        part.write_batch([watched(*(of(0, f"s{n}") for n in range(40)))])
        part.snapshot()
        assert len(consume(kafka, topic, 41)) == 41


def test_a_topic_that_is_gone_stops_the_flow(kafka: Kafka, topic: str) -> None:
    with partitions(kafka, topic, wait_seconds=2) as (part, _):
        part.write_batch([watched(of(0))])
        part.snapshot()
        kafka.delete_topic(topic)

        def send(number: int) -> None:
            part.write_batch([watched(of(number))])
            part.snapshot()

        with pytest.raises(TallyError, match="did not take a signal"):
            send(1)


def test_what_is_unacknowledged_is_bounded(kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "UNACKNOWLEDGED_MAX", 2)
    with partitions(kafka, topic) as (part, _):
        part.write_batch([watched(*(of(number) for number in range(10)))])
        part.snapshot()
        assert len(consume(kafka, topic, 10)) == 10


def test_a_topic_is_made_once_and_kept_as_it_is(kafka: Kafka) -> None:
    own = options(kafka.bootstrap)
    assert ensure_topic(own, "signals.made", partitions=4, replication=None, wait_seconds=WAIT_SECONDS)
    assert not ensure_topic(own, "signals.made", partitions=9, replication=None, wait_seconds=WAIT_SECONDS)
    with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
        (described,) = admin.describe_topics(["signals.made"])
        assert len(described["partitions"]) == 4
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, "signals.made")])
        assert str(RETENTION_MS) in str(found)


def test_a_wrong_address_is_named() -> None:
    (port,) = free_ports(1)
    nobody = options(f"127.0.0.1:{port}")
    with pytest.raises(TallyError, match=rf"Kafka at 127.0.0.1:{port}: topic signals .*brokers run"):
        ensure_topic(nobody, "signals", partitions=1, replication=None, wait_seconds=0.5)
    sink = KafkaSink(nobody, topic="signals", wait_seconds=0.5)
    with pytest.raises(TallyError, match=f"Kafka at 127.0.0.1:{port} did not take"):
        sink.build_part("step", "00", None)
    sink.close()
