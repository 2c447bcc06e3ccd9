"""What a flow over Kafka tells of itself: lag, time to signal, readiness, and that a broker that is away is named."""

from __future__ import annotations

import random

import pytest

from flows.start import Deployment
from tests.flows.kafka_logs import LARGE, PARTITIONS, recent, send
from tests.flows.places import Place
from tests.flows.test_kafka import SEED, KafkaPlace
from tests.flows.test_status import free_port, get, samples
from tests.oracle.events import payloads
from tests.services.kafka import Kafka

SECONDS_MAX = 60


@pytest.fixture
def kafka_place(place: Place, kafka: Kafka) -> KafkaPlace:
    return KafkaPlace(place.data, kafka, "status-kafka")


def test_lag_signals_and_readiness(kafka_place: KafkaPlace, kafka: Kafka) -> None:
    kafka.create_topic(kafka_place.topic, PARTITIONS, **LARGE)
    messages = recent(SEED, 120)
    whole = sum(len(payloads(value)) for values in messages for value in values)
    send(kafka, kafka_place.topic, messages, random.Random(SEED))
    port = free_port()
    pages: dict[str, tuple[int, bytes]] = {}

    def counted() -> float:
        found = samples(pages["metrics"][1])
        return sum(count for (name, *_), count in found.items() if name == "tally_events_total")

    def looked(deployment: Deployment) -> bool:
        if deployment.input.lags is None or any(lag.offsets for lag in deployment.input.lags().values()):
            return False
        for page in ("healthz", "readyz", "metrics"):
            pages[page] = get(port, page)
        return pages["readyz"][0] == 200 and counted() == whole

    kafka_place.run_until(looked, metrics_port=port)
    assert pages["healthz"][0] == pages["readyz"][0] == 200, pages
    found = samples(pages["metrics"][1])
    for partition in range(PARTITIONS):
        assert found["tally_lag_offsets", str(partition)] == found["tally_lag_seconds", str(partition)] == 0
        assert found["tally_position_offset", str(partition)] > 0
        assert found["tally_messages_total", str(partition)] > 0
    assert counted() == whole
    assert found["tally_service_answer_age_seconds", "kafka"] < SECONDS_MAX
    signals = sum(count for (name, *_), count in found.items() if name == "tally_signals_total")
    assert found["tally_event_to_signal_seconds_count",] == signals > 0
    for channel in ("kafka", "redis"):
        assert 0 < found["tally_signal_send_seconds_count", channel] <= signals, "the last may still be on their way"
