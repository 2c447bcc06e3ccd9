"""What the Kafka source does when Kafka is not as it should be: it waits within its bound, or says what to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from domain.ports import TallyError
from sources.kafka import IDLE_SLACK_US, KafkaState, parse_accepted_loss
from sources.kafka_client import connect
from sources.kafka_clock import LogClock
from sources.kafka_topic import Plan, check_known, describe, open_topic
from tests.services.kafka import Kafka
from tests.services.secured import secured_broker
from tests.sources.kafka_scenes import LOG_APPEND_TIME, Scene, options, produce, read_all, topic


def failing(scene: Scene, within_seconds: float = 30) -> str:
    """Poll until the source refuses to go on."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        try:
            scene.poll()
        except TallyError as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError(f"it goes on; read so far: {scene.read.states}")


def delete_until(kafka: Kafka, name: str, offset: int) -> None:
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(name, 0): offset})


def test_what_retention_took_before_the_first_start_is_no_loss(kafka: Kafka) -> None:
    kafka.create_topic("faults-expired", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-expired", [b"%d" % i for i in range(10)])
    delete_until(kafka, "faults-expired", 4)
    read = read_all(kafka, "faults-expired", 6)
    assert read.batches[0][0].start_offset == 0, "claims follow each other from 0 on"
    assert read.offsets() == list(range(4, 10))
    assert read.states[0].messages == 6


def test_what_was_deleted_before_it_was_counted_stops_the_start_until_it_is_accepted(kafka: Kafka) -> None:
    kafka.create_topic("faults-lost", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-lost", [b"%d" % i for i in range(10)])
    states = {0: KafkaState(topic(kafka, "faults-lost").id, 3, 3, 3)}
    delete_until(kafka, "faults-lost", 7)
    with pytest.raises(TallyError, match=r"faults-lost/0: the messages from offset 3 to 6 are lost: .*ACCEPT_LOSS=0:7"):
        Scene(kafka, "faults-lost", states)
    with pytest.raises(TallyError, match="ACCEPT_LOSS=0:7"):
        Scene(kafka, "faults-lost", states, accepted_loss={0: 6})
    read = read_all(kafka, "faults-lost", 3, states, accepted_loss=parse_accepted_loss("1:5, 0:7"))
    assert read.batches[0][0].start_offset == 3
    assert read.offsets() == [7, 8, 9] and read.states[0][1:4] == (10, 6, 6)
    with pytest.raises(TallyError, match="write partition:offset"):
        parse_accepted_loss("0=7")


def test_what_is_deleted_while_it_is_read_stops_the_run(kafka: Kafka) -> None:
    kafka.create_topic("faults-deleting", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-deleting", [b"%d" % i for i in range(10)])
    with Scene(kafka, "faults-deleting", states=None, build=False) as scene:
        delete_until(kafka, "faults-deleting", 7)
        scene.build({0: KafkaState(topic(kafka, "faults-deleting").id, 3)})
        assert "faults-deleting/0: offset 3 is not there any more" in failing(scene)


def test_a_log_that_became_shorter_is_refused(kafka: Kafka) -> None:
    kafka.create_topic("faults-shorter", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-shorter", [b"1"])
    with pytest.raises(TallyError, match=r"faults-shorter/0 ends at offset 1, but was read up to 5"):
        Scene(kafka, "faults-shorter", {0: KafkaState(topic(kafka, "faults-shorter").id, 5)})


def test_another_topic_of_the_same_name_is_refused(kafka: Kafka) -> None:
    kafka.create_topic("faults-again", 1, **LOG_APPEND_TIME)
    before = topic(kafka, "faults-again")
    with Scene(kafka, "faults-again") as scene:
        scene.poll()
        kafka.delete_topic("faults-again")
        kafka.create_topic("faults-again", 1, **LOG_APPEND_TIME)
        assert "faults-again" in failing(scene), "deleted, or made again: whichever is seen first"
    with pytest.raises(TallyError, match="deleted and made again"):
        Scene(kafka, "faults-again", {0: KafkaState(before.id, 0)})
    with pytest.raises(TallyError, match="deleted and made again"):
        check_known(topic(kafka, "faults-again"), before.id, 1)


def test_more_partitions_end_the_run_and_are_read_from_their_beginning(kafka: Kafka) -> None:
    kafka.create_topic("faults-grown", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-grown", [b"old"])
    with Scene(kafka, "faults-grown") as scene:
        states = scene.until(lambda read: read.payloads()).states
        with kafka.admin() as admin:
            admin.create_partitions({"faults-grown": 2})
        assert "now has 2 partitions" in failing(scene)
    produce(kafka, "faults-grown", [b"new"], partition=1)
    read = read_all(kafka, "faults-grown", 1, states, known_partitions=1)
    assert read.payloads(1) == [b"new"]
    found = topic(kafka, "faults-grown")
    check_known(found, found.id, 1)
    with pytest.raises(TallyError, match="has 2 partitions, and this deployment has read from 3"):
        check_known(found, found.id, 3)


def test_a_new_partition_of_which_messages_are_gone_already_is_refused(kafka: Kafka) -> None:
    kafka.create_topic("faults-late", 2, **LOG_APPEND_TIME)
    produce(kafka, "faults-late", [b"gone"], partition=1)
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition("faults-late", 1): 1})
    with pytest.raises(TallyError, match="faults-late/1: the messages from offset 0 to 0 are lost"):
        Scene(kafka, "faults-late", known_partitions=1)


def test_a_broker_that_is_killed_and_comes_back_is_waited_for(kafka: Kafka) -> None:
    kafka.create_topic("faults-kill", 2, **LOG_APPEND_TIME)
    values = [b"%d" % i for i in range(300)]
    for partition in range(2):
        produce(kafka, "faults-kill", values[:200], partition)
    with Scene(kafka, "faults-kill", rows_max=50) as scene:
        scene.until(lambda read: len(read.payloads(0)) >= 100)
        kafka.kill()
        try:
            scene.poll()
        finally:
            kafka.start()
        for partition in range(2):
            produce(kafka, "faults-kill", values[200:], partition)
        read = scene.until(lambda read: len(read.payloads(0)) + len(read.payloads(1)) >= 600)
    assert [read.payloads(partition) for partition in range(2)] == [values, values]


def test_a_broker_that_stays_away_stops_the_run_within_the_bound(kafka: Kafka) -> None:
    kafka.create_topic("faults-away", 1, **LOG_APPEND_TIME)
    with Scene(kafka, "faults-away", wait_seconds=2) as hasty, Scene(kafka, "faults-away", wait_seconds=60) as patient:
        hasty.poll()
        kafka.stop()
        try:
            start = time.monotonic()
            said = failing(hasty)
            assert 1 < time.monotonic() - start < 8
            patient.poll()
        finally:
            kafka.start()
        produce(kafka, "faults-away", [b"after it"])
        patient.until(lambda read: read.payloads() == [b"after it"])
    assert f"Kafka at {kafka.bootstrap} cannot be used: no answer for" in said and "ECONNREFUSED" in said


class Stuck(KafkaConsumer):  # type: ignore[misc]
    """A consumer that never returns a message, as some of kafka-python's faults leave one."""

    def poll(self, *args: Any, **more: Any) -> dict[Any, Any]:
        time.sleep(0.05)
        return {}


def test_a_stuck_consumer_is_noticed(kafka: Kafka) -> None:
    kafka.create_topic("faults-stuck", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-stuck", [b"1", b"2"])
    with Scene(kafka, "faults-stuck", wait_seconds=1, consumer=Stuck) as scene:
        assert "the messages from offset 0 to 2 are there, but reading has brought none of them" in failing(scene)


class Raising(KafkaConsumer):  # type: ignore[misc]
    """A consumer whose first polls raise what it may."""

    left = 3

    def poll(self, *args: Any, **more: Any) -> Any:
        found = super().poll(*args, **more)
        if found and Raising.left:
            Raising.left -= 1
            raise RuntimeError("a fault after messages were taken")
        return found


def test_a_consumer_that_raises_is_replaced_and_nothing_is_skipped(kafka: Kafka) -> None:
    kafka.create_topic("faults-raising", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-raising", [b"%d" % i for i in range(100)])
    read = read_all(kafka, "faults-raising", 100, rows_max=30, consumer=Raising)
    assert read.payloads() == [b"%d" % i for i in range(100)]
    assert Raising.left == 0


def test_producers_times_stop_the_run(kafka: Kafka) -> None:
    kafka.create_topic("faults-times", 1, message_timestamp_type="CreateTime")
    produce(kafka, "faults-times", [b"1"], timestamp_ms=1)
    with pytest.raises(TallyError, match=r"is on message\.timestamp\.type=CreateTime.*set LogAppendTime"):
        topic(kafka, "faults-times")
    with kafka.admin() as admin:
        change = {"message.timestamp.type": "LogAppendTime"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "faults-times", change)])
    produce(kafka, "faults-times", [b"2"])
    with Scene(kafka, "faults-times") as scene:
        assert "faults-times/0: the message at offset 0 bears its producer's time" in failing(scene)


def test_a_compacted_topic_is_refused(kafka: Kafka) -> None:
    kafka.create_topic("faults-compacted", 1, cleanup_policy="compact,delete", **LOG_APPEND_TIME)
    with pytest.raises(TallyError, match=r"cleanup\.policy=compact,delete.*set cleanup\.policy=delete"):
        topic(kafka, "faults-compacted")


def test_a_missing_topic_is_made_by_a_new_deployment_only(kafka: Kafka) -> None:
    with pytest.raises(TallyError, match=r"no topic 'faults-missing'.*check TALLY_KAFKA_TOPIC"):
        topic(kafka, "faults-missing")
    day_ms = 86_400_000
    plan = Plan(partitions=3, replication=None, retention_ms=42 * day_ms)
    made = open_topic(options(kafka), "faults-missing", plan=plan, seconds_max=30)
    assert (made.partitions, made.retention_ms, made.lasts()) == (3, 42 * day_ms, "42 days")
    assert topic(kafka, "faults-missing") == made
    assert open_topic(options(kafka), "faults-missing", plan=Plan(9, None, day_ms), seconds_max=30) == made
    with pytest.raises(TallyError, match=r"making it was refused.*TALLY_KAFKA_REPLICATION"):
        open_topic(options(kafka), "faults-unmade", plan=Plan(1, 3, day_ms), seconds_max=30)


def test_idle_partitions_say_how_far_their_log_time_is_and_no_more_than_that(kafka: Kafka) -> None:
    kafka.create_topic("faults-idle", 2, **LOG_APPEND_TIME)
    produce(kafka, "faults-idle", [b"1"])
    passed_us = [0]
    clock = LogClock(lambda: passed_us[0])
    with Scene(kafka, "faults-idle", clock=clock) as scene:
        read = scene.until(lambda read: read.batches.keys() == {0, 1})
        logged_us = read.states[0].log_time_us
        (empty,) = read.batches[1]
        assert (empty.payloads, empty.start_offset, empty.next_offset) == ([], 0, 0)
        assert empty.log_time_us == logged_us - IDLE_SLACK_US
        for _ in range(30):
            scene.poll()
            time.sleep(0.01)
        assert [len(some) for some in read.batches.values()] == [1, 1], "the other's message is younger than the claim"
        passed_us[0] += 3600 * 10**6
        claim_us = logged_us + passed_us[0] - IDLE_SLACK_US
        scene.until(lambda read: all(state.log_time_us == claim_us for state in read.states.values()))
        assert [len(some) for some in read.batches.values()] == [2, 2], "one claim for the whole hour"
        produce(kafka, "faults-idle", [b"2"])
        scene.until(lambda read: len(read.payloads(0)) == 2)
        assert read.states[0].log_time_us == claim_us, "log time does not go back"


def test_a_wrong_clock_of_this_machine_claims_nothing(kafka: Kafka) -> None:
    """Hours ahead or behind: idle partitions go by the newest message of the topic."""
    kafka.create_topic("faults-clock", 2, **LOG_APPEND_TIME)
    produce(kafka, "faults-clock", [b"1"])
    for hours in (-5, 5):
        wrong_us = time.time_ns() // 1000 + hours * 3600 * 10**6
        with Scene(kafka, "faults-clock", now_us=lambda: wrong_us) as scene:  # noqa: B023 - called in this round only
            read = scene.until(lambda read: read.batches.keys() == {0, 1})
            behind_us = read.states[0].log_time_us - read.states[1].log_time_us
            assert IDLE_SLACK_US - 60 * 10**6 < behind_us <= IDLE_SLACK_US


def committed(kafka: Kafka, name: str) -> int | None:
    return kafka.committed(f"group-{name}", name).get(0)


def test_offsets_are_committed_once_they_are_durable(kafka: Kafka) -> None:
    kafka.create_topic("faults-commits", 1, **LOG_APPEND_TIME)
    produce(kafka, "faults-commits", [b"%d" % i for i in range(10)])
    with Scene(kafka, "faults-commits") as scene:
        part = scene.parts[0]
        wait_until(lambda: part.next_batch())
        part.snapshot()
        time.sleep(0.5)
        assert committed(kafka, "faults-commits") is None, "the first snapshot may not be stored yet"
        part.snapshot()
        wait_until(lambda: committed(kafka, "faults-commits") == 10)
        produce(kafka, "faults-commits", [b"10"])
        wait_until(lambda: scene.source.lags()[0].offsets == 1)
        wait_until(lambda: part.next_batch())
        wait_until(lambda: scene.source.lags()[0] == (0, 0.0))
    with Scene(kafka, "faults-commits", {0: KafkaState(topic(kafka, "faults-commits").id, 11, 11, 11)}):
        wait_until(lambda: committed(kafka, "faults-commits") == 11)


def wait_until(done: Callable[[], object], seconds_max: float = 30) -> None:
    deadline = time.monotonic() + seconds_max
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("kafka")
def test_tls_and_logins_work_and_what_is_refused_is_named_without_the_password(tmp_path: Path) -> None:
    with secured_broker(tmp_path) as broker:
        right = {"bootstrap_servers": [broker.bootstrap], **broker.client}
        with connect(right, 30) as client:
            assert describe(client, "nothing") is None
        without_ca = {key: value for key, value in right.items() if key != "ssl_cafile"}
        without_certificate = {key: value for key, value in right.items() if key != "ssl_certfile"}
        for wrong, why in (
            ({**right, "sasl_plain_password": "falsch"}, "login"),
            ({**right, "security_protocol": "PLAINTEXT"}, "login"),
            (without_ca, "CERTIFICATE_VERIFY_FAILED"),
            (without_certificate, "BAD_CERTIFICATE|CERTIFICATE_REQUIRED|login"),
        ):
            with pytest.raises(TallyError, match=f"Kafka at {broker.bootstrap} cannot be used: .*({why})") as caught:
                connect(wrong, 1)
            assert "falsch" not in str(caught.value)


def test_nobody_there_is_named() -> None:
    with pytest.raises(TallyError, match=r"Kafka at 127\.0\.0\.1:9 cannot be used: .*ECONNREFUSED.*_BROKERS"):
        connect({"bootstrap_servers": ["127.0.0.1:9"]}, 1)


def test_a_batch_has_room_for_a_message(kafka: Kafka) -> None:
    kafka.create_topic("faults-batch", 1, **LOG_APPEND_TIME)
    with pytest.raises(ValueError, match="batch_rows_max must be at least 1, not 0"):
        Scene(kafka, "faults-batch", rows_max=0)
