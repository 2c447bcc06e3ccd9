"""What products see of a run: signals and quotas as the oracle has them, also after Redis lost everything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from kafka import KafkaConsumer, TopicPartition

from domain.instants import parse
from domain.signals_json import decimal_text
from engines.redis_server import RedisServer
from tests.flows import scenes
from tests.flows.places import Place, StopAfter, check, events, expected
from tests.oracle import Tables
from tests.services.kafka import Kafka

CATALOG = scenes.CATALOG.replace("on_exceed: block", "on_exceed: allow", 5)
TEN_YEARS_DAYS = 3650
OPEN_US = 2_000_000_000_000_000
"""2033: what ends after it is open by Redis's clock. What ended long ago is not kept."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    return events(31, 200, TEN_YEARS_DAYS)


@pytest.fixture(scope="module")
def wanted(contents: list[bytes]) -> Tables:
    return expected([(0, CATALOG)], contents)


def text_of(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def quotas_of(tables: Tables) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By subject, feature and plan, the states of the last period; several plans if the subject changed them."""
    last: dict[tuple[str, str, str], int] = {}
    rows = {key: row for key, row in tables.quotas.items() if row["period_end"] > OPEN_US}
    for subject, plan, feature, start in rows:
        last[subject, plan, feature] = max(start, last.get((subject, plan, feature), 0))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    on_exceed = {
        (name, entitlement["feature"]): entitlement.get("on_exceed", "block")
        for name, plan in yaml.safe_load(CATALOG)["plans"].items()
        for entitlement in plan.get("entitlements", [])
    }
    assert set(on_exceed.values()) == {"allow", "block"}
    for (subject, plan, feature, start), row in rows.items():
        if start == last[subject, plan, feature]:
            state = {
                "used": decimal_text(int(row["used"].scaleb(12)), 12),
                "limit": decimal_text(int(row["allowance"].scaleb(12)), 12),
                "state": row["state"],
                "period_start": text_of(start),
                "period_end": text_of(row["period_end"]),
                "inputs": row["inputs"],
                "era": 0,
                "plan": plan,
                "on_exceed": on_exceed[plan, feature],
            }
            found.setdefault((subject, feature), []).append(state)
    return found


def check_quotas(url: str, tables: Tables) -> None:
    known = quotas_of(tables)
    assert len(known) > 20
    held: dict[tuple[str, str], Any] = {}
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for key in client.scan_iter("quota:*"):
            for feature, value in client.hgetall(key).items():
                state = json.loads(value)
                state.pop("since", None)
                if state["period_end"] > text_of(OPEN_US):
                    held[key.removeprefix("quota:{").removesuffix("}"), feature] = state
    assert held.keys() == known.keys()
    for key, states in known.items():
        assert held[key] in states


def test_quotas_in_redis_are_what_the_oracle_counts(
    place: Place, server: RedisServer, contents: list[bytes], wanted: Tables
) -> None:
    """After a stop in the middle, with another number of workers, and after Redis was flushed."""
    place.write(contents)
    place.run(CATALOG, StopAfter(6), batch_rows_max=30, redis_url=server.url)
    check(place.run(None, workers=2, redis_url=server.url).tables, wanted)
    check_quotas(server.url, wanted)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    place.run(None, redis_url=server.url)
    check_quotas(server.url, wanted)


def test_every_signal_comes_by_kafka_and_by_redis(
    place: Place, server: RedisServer, kafka: Kafka, contents: list[bytes], wanted: Tables
) -> None:
    """The first run ends in the middle of the files; of the second the last epoch was lost, so it is sent again."""
    place.write(contents)
    where: dict[str, Any] = {
        "redis_url": server.url,
        "kafka_brokers": kafka.bootstrap,
        "signals_topic": "products.signals",
    }
    with redis.Redis.from_url(server.url) as client, client.pubsub() as pubsub:
        pubsub.subscribe("usage.signals")
        place.run(CATALOG, StopAfter(6), batch_rows_max=30, **where)
        shutil.copytree(place.data / "recovery", place.data.parent / "saved")
        place.run(None, StopAfter(6), batch_rows_max=30, **where)
        shutil.rmtree(place.data / "recovery")
        (place.data.parent / "saved").rename(place.data / "recovery")
        place.run(None, workers=2, **where)
        heard = []
        while (message := pubsub.get_message(timeout=0.5)) is not None:
            heard.append(message["data"])
    with KafkaConsumer(bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign(
            [TopicPartition("products.signals", p) for p in consumer.partitions_for_topic("products.signals")]
        )
        sent = []
        while records := consumer.poll(timeout_ms=1500):
            sent += [record for found in records.values() for record in found]
    ids = {row["id"] for row in wanted.signals.values()}
    assert len(ids) > 20
    for messages in ([record.value for record in sent], heard[1:]):
        signals = list(map(json.loads, messages))
        assert {signal["id"] for signal in signals} == ids
        assert len(signals) > len(ids), "nothing was sent again: this shows too little"
    for record in sent:
        signal = json.loads(record.value)
        assert record.key.decode() == signal["subject"]
        threshold = Decimal(signal["data"]["threshold"])
        start = parse(signal["data"]["period_start"])
        row = wanted.signals[signal["type"], signal["subject"], signal["data"]["feature"], start, threshold]
        assert (signal["id"], Decimal(signal["data"]["allowance"])) == (row["id"], row["allowance"])
