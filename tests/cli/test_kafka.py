"""`tally check` and `tally run` over Kafka, as their users meet them."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from kafka import KafkaProducer

from tests.cli.command import Inside, ended, shown, start
from tests.services.kafka import Kafka

EVENT = (
    b'{"specversion":"1.0","id":"%d","source":"s","type":"api.request","subject":"c",'
    b'"data":{"bytes":5,"region":"eu-west-1","method":"GET","status":200,"milliseconds":1}}'
)


def test_check_names_what_is_wrong_with_kafka(inside: Inside, kafka: Kafka) -> None:
    brokers = {"TALLY_KAFKA_BROKERS": kafka.bootstrap}
    missing = inside("check", **brokers, TALLY_KAFKA_TOPIC="cli-missing")
    assert "input       ok: the first run makes topic cli-missing with 8 partitions" in missing.out
    kafka.create_topic("cli-times", 2)
    wrong = inside("check", **brokers, TALLY_KAFKA_TOPIC="cli-times")
    assert wrong.code == 1
    assert "input       FAULT: topic cli-times is on message.timestamp.type=CreateTime" in wrong.out
    kafka.create_topic("cli-fit", 2, message_timestamp_type="LogAppendTime", retention_ms=86_400_000)
    fit = inside("check", **brokers, TALLY_KAFKA_TOPIC="cli-fit")
    assert "input       ok: topic cli-fit, 2 partitions, keeps messages 1 days" in fit.out
    loss = inside("check", **brokers, TALLY_KAFKA_TOPIC="cli-fit", TALLY_KAFKA_ACCEPT_LOSS="x")
    assert "input       FAULT: TALLY_KAFKA_ACCEPT_LOSS has 'x': write partition:offset" in loss.out


def test_a_run_without_a_broker_says_so(inside: Inside) -> None:
    said = inside("run", TALLY_KAFKA_BROKERS="127.0.0.1:9", TALLY_KAFKA_WAIT_SECONDS="1")
    assert (said.code, said.out) == (1, "")
    assert "Kafka at 127.0.0.1:9 cannot be used: " in said.err and "ECONNREFUSED" in said.err


def test_a_run_counts_until_it_is_told_to_stop(kafka: Kafka, tmp_path: Path) -> None:
    settings = {
        "TALLY_KAFKA_BROKERS": kafka.bootstrap,
        "TALLY_KAFKA_TOPIC": "cli-run",
        "TALLY_KAFKA_GROUP": "cli-run",
        "TALLY_SIGNALS_TOPIC": "cli-run-signals",
        "TALLY_EPOCH_SECONDS": "0.2",
    }
    kafka.create_topic("cli-run", 2, message_timestamp_type="LogAppendTime")
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    for number in range(20):
        producer.send("cli-run", EVENT % number, partition=number % 2)
    producer.close()
    process = start("run", "--catalog", "api", cwd=tmp_path, **settings)
    deadline = time.monotonic() + 60
    while sum(kafka.committed("cli-run", "cli-run").values()) < 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = ended(process)
    assert said.code == 0, shown(said)
    assert "balance: 20 events in = 20 accepted + 0 rejected" in said.out
    assert "stopped as asked; run again to go on" in said.err
