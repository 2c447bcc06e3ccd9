"""The Python blocks of the SDK's README, run in order as one program against a real Kafka and a real Redis."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from inspect import signature
from typing import Any

import pytest
import redis
from kafka import KafkaProducer
from tallyflow import Quotas, UsageEmitter, subscribe

from domain.quota import Signal, SignalType
from domain.signals_json import signal_event
from tests.docs.markdown import ROOT, blocks
from tests.sdk.test_emitter import read
from tests.services.kafka import Kafka

_README = ROOT / "sdk" / "README.md"


def test_the_examples_run(kafka: Kafka, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    kafka.create_topic("sdk.readme", 1)
    kafka.create_topic("sdk.readme.signals", 1)
    _produce_signal(kafka, "sdk.readme.signals")
    with redis.Redis.from_url(f"{redis_url}?db=8") as client:
        client.flushdb()
        client.hset("quota:{cust-1}", "api", json.dumps(_exceeded()))
    places = {
        "kafka:9092": kafka.bootstrap,
        "redis://redis:6379/0": f"{redis_url}?db=8",
        'source="/services': 'topic="sdk.readme", source="/services',
        'group="notifier"': 'group="notifier", topic="sdk.readme.signals"',
    }
    scope: dict[str, Any] = {}
    examples = [block for block in blocks(_README) if block.kind == "python"]
    assert len(examples) == 8
    for block in examples:
        text = block.text
        for said, meant in places.items():
            text = text.replace(said, meant)
        exec(compile("\n" * block.line + text, str(_README), "exec"), scope)
    said = capsys.readouterr().out
    assert "delivered=1, failed=0" in said
    assert "2000 of 1000 used; again from 20" in said
    assert "False\n" in said
    assert "quota.exceeded: cust-1 used 1000.5 of 1000 api" in said
    events = [json.loads(record.value) for record in read(kafka, "sdk.readme")]
    assert [event["type"] for event in events] == ["api.request", *["tallyflow.subscription"] * 3]
    assert events[0]["data"] == {"bytes": 5120, "region": "eu-west-1", "cost": 0.0042}


def test_what_the_readme_says_of_defaults_is_so() -> None:
    text = _README.read_text(encoding="utf-8")
    made = {name: value.default for name, value in signature(UsageEmitter).parameters.items()}
    assert (made["on_full"], made["block_seconds_max"]) == ("raise", 0.05) and "(50 ms)" in text
    assert made["delivery_seconds_max"] == 300 and "(5 minutes)" in text
    assert made["exit_seconds_max"] == 5 and "(5 s)" in text
    assert signature(subscribe).parameters["remember_ids_max"].default == 100_000 and "(100,000)" in text
    asked = signature(Quotas).parameters
    assert [asked[name].default for name in ("when_unreachable", "when_unknown", "timeout_seconds")] == [
        "allow",
        "allow",
        0.1,
    ]


def _exceeded() -> dict[str, Any]:
    now = datetime.now(UTC)
    start, end = now - timedelta(hours=1), now + timedelta(hours=1)
    return {
        "used": "2000",
        "limit": "1000",
        "state": "exceeded",
        "period_start": start.isoformat(),
        "period_end": end.isoformat(),
        "inputs": 3,
        "era": 0,
        "on_exceed": "block",
    }


def _produce_signal(kafka: Kafka, topic: str) -> None:
    start, end = 1_767_225_600_000_000, 1_769_904_000_000_000
    limit = 10**15
    signal = Signal(
        "0123", SignalType.EXCEEDED, "cust-1", "api", "api_bytes", start, end,
        limit, limit, limit + 5 * 10**11, start + 1, 1,
    )  # fmt: skip
    with KafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        producer.send(topic, signal_event(signal), key=b"cust-1")
        producer.flush(30)
