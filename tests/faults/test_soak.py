"""What the soak sends is what it says it sends."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import datetime

from tests.faults.load import MINUTE_US, Generator, Producer
from tests.services.kafka import Kafka
from tests.system.traffic import read_topic


def test_the_load_is_what_kafka_then_holds(kafka: Kafka) -> None:
    topic, generator = "load", Generator(seed=5, partitions=2)
    kafka.create_topic(topic, 2, message_timestamp_type="LogAppendTime")
    with Producer(kafka.bootstrap, topic) as producer:
        for number in range(3):
            now_us = time.time_ns() // 1000 - number * MINUTE_US
            producer.send({part: generator.batch(part, 500, now_us) for part in range(2)})
    messages = read_topic(kafka.bootstrap, topic)
    assert Counter(message.partition for message in messages) == dict(enumerate(generator.sent))
    events = {message.value: json.loads(message.value or b"") for message in messages}
    assert len(messages) - len(events) == generator.repeats > 0
    assert sorted(int(event["id"]) for event in events.values()) == list(range(generator.events))
    counts: Counter[tuple[str, int]] = Counter()
    sums: Counter[tuple[str, int]] = Counter()
    for event in events.values():
        minute = int(datetime.fromisoformat(event["time"]).timestamp()) // 60 * MINUTE_US
        counts[event["subject"], minute] += 1
        sums[event["subject"], minute] += event["data"]["bytes"]
    assert (counts, sums) == (generator.counts, generator.sums)
    places = {(json.loads(message.value or b"")["subject"], message.partition) for message in messages}
    assert len(places) == len({subject for subject, _ in places}), "a subject has one partition"
