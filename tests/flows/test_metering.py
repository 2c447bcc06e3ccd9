"""The whole flow over fakes: its step ids, and that workers, batches and replays do not show in what it puts out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count

import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main
from bytewax.visualize import to_json

from domain.envelope import split
from domain.quota import Watched
from domain.values import Batch, RawBatch
from flows.metering import build
from tests.batches import TOPIC, history, payload, raw, us
from tests.books import Books
from tests.fakes.flows import FakeSink, FakeSource, FakeSubscriptions
from tests.fakes.redis import RedisServer
from tests.operators.running import fake_claims
from tests.oracle import Tables, compute
from tests.oracle.events import lines
from tests.tables import differences, expected_tables
from tests.workload import generate, kitchen_sink_catalog

STEP_IDS = [
    "metering.source",
    "metering.deduplicate",
    "metering.deduplicate.claim",
    "metering.subscribe",
    "metering.subscribe.apply",
    "metering.subscribe.apply.flat_map_batch",
    "metering.aggregate",
    "metering.aggregate.partials",
    "metering.aggregate.partials.flat_map_batch",
    "metering.aggregate.totals",
    "metering.rate",
    "metering.rate.price",
    "metering.rate.price.map",
    "metering.rate.price.map.flat_map_batch",
    "metering.watch_quotas",
    "metering.watch_quotas.watch",
    "metering.watch_quotas.watch.map",
    "metering.watch_quotas.watch.map.flat_map_batch",
    "metering.durable",
    "metering.durable.flat_map_batch",
    "metering.rows",
    "metering.rows_here",
    "metering.rows_here.flat_map_batch",
    "metering.clickhouse",
    "metering.watched_here",
    "metering.watched_here.flat_map_batch",
    "metering.redis",
    "metering.kafka",
]
"""Bytewax keeps state by step id. Another id orphans what deployments have saved: they would count from zero."""


def batches_of(content: bytes, partition: int, messages_max: int) -> Iterator[RawBatch]:
    """A file's events as its source would emit them."""
    messages = lines(content)
    events = 0
    for start in range(0, len(messages), messages_max):
        after = min(start + messages_max, len(messages))
        places = [(offset, i, e) for offset in range(start, after) for i, e in enumerate(split(messages[offset]))]
        offsets, indexes, payloads = (list(column) for column in zip(*places, strict=True))
        events += len(places)
        yield RawBatch(TOPIC, partition, start, after, offsets, indexes, payloads, after, events)


def flow_over(
    files: list[bytes],
    sink: FakeSink,
    *,
    messages_max: int = 100,
    server: RedisServer | None = None,
    outlets: dict[str, FakeSink] | None = None,
) -> Dataflow:
    ticks = count()
    return build(
        FakeSource({n: list(batches_of(content, n, messages_max)) for n, content in enumerate(files)}),
        history=history(kitchen_sink_catalog()),
        claims=fake_claims(server),
        subscriptions=FakeSubscriptions(),
        sink=sink,
        outlets={"redis": FakeSink(), "kafka": FakeSink()} if outlets is None else outlets,
        here="00",
        shards=8,
        partitions=None,
        now_us=lambda: next(ticks),
    )


def books_of(sink: FakeSink) -> Books:
    books = Books()
    for item in sink.items:
        books.add(item)
    return books


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return generate(seed=5, events=250, subjects=12, files=3)


@pytest.fixture(scope="module")
def truth(files: list[bytes]) -> Tables:
    return expected_tables(compute([(0, kitchen_sink_catalog())], list(enumerate(files))))


def test_step_ids_are_pinned() -> None:
    assert _step_ids(flow_over([], FakeSink())) == STEP_IDS


def _step_ids(flow: Dataflow) -> list[str]:
    """Every step, nested ones too, in the order in which the flow was built."""

    def walk(step: dict[str, object]) -> Iterator[str]:
        yield str(step["step_id"])
        substeps = step["substeps"]
        assert isinstance(substeps, list)
        for inner in substeps:
            yield from walk(inner)

    return [step_id for outer in json.loads(to_json(flow))["substeps"] for step_id in walk(outer)]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_oracles_rows(workers: int, files: list[bytes], truth: Tables) -> None:
    sink = FakeSink()
    cluster_main(flow_over(files, sink), [], 0, worker_count_per_proc=workers)
    books = books_of(sink)
    assert differences(books.tables, truth) == []
    assert len(books.signals) == len(books.tables.signals), "a threshold was crossed twice"


def test_counting_it_all_again_gives_the_same_rows(files: list[bytes], truth: Tables) -> None:
    """A replay from the beginning, with other batches, over claims that remember the first time."""
    server, sink = RedisServer(), FakeSink()
    for messages_max in (400, 150):
        cluster_main(flow_over(files, sink, messages_max=messages_max, server=server), [], 0)
    books = books_of(sink)
    assert differences(books.tables, truth) == []
    assert len(books.signals) == 2 * len(books.tables.signals)


def test_what_is_written_holds_no_decoded_data(files: list[bytes]) -> None:
    sink = FakeSink()
    cluster_main(flow_over(files[:1], sink), [], 0)
    batches = [item for item in sink.items if isinstance(item, Batch)]
    assert sum(len(batch.events) for batch in batches) > 50
    assert not any(batch.events.data for batch in batches)


def test_every_outlet_gets_what_is_watched(files: list[bytes]) -> None:
    sink, outlets = FakeSink(), {"one": FakeSink(), "two": FakeSink()}
    cluster_main(flow_over(files, sink, outlets=outlets), [], 0, worker_count_per_proc=2)
    watched = [item for item in sink.items if isinstance(item, Watched)]
    assert any(item.signals for item in watched)
    for outlet in outlets.values():
        assert sorted(map(repr, outlet.items)) == sorted(map(repr, watched))


def test_a_blocked_customer_hears_of_the_new_period_by_the_log_time_of_others() -> None:
    """A partition without events is enough: Kafka's idle ones are read up to now."""
    noon, midnight = us("2026-03-10T12:00:00Z"), us("2026-03-11T00:00:00Z")
    used = [payload(id=str(n), type="use", subject="blocked", time=None, data={}) for n in range(4)]
    logs = {
        0: [raw(used, log_times_us=[noon] * 4, log_time_us=noon)],
        1: [raw([], partition=1, log_time_us=at) for at in (noon, midnight - 1, midnight, midnight + 1)],
    }
    sink = FakeSink()
    flow = build(
        FakeSource(logs),
        history=history(LIMITED),
        claims=fake_claims(),
        subscriptions=FakeSubscriptions(),
        sink=sink,
        outlets={},
        here="00",
        shards=4,
        partitions=[0, 1],
        now_us=lambda: 7,
    )
    cluster_main(flow, [], 0, worker_count_per_proc=2)
    signals = [signal for item in sink.items if isinstance(item, Watched) for signal in item.signals]
    assert [(s.type.value, s.subject, s.period_end_us) for s in signals] == [
        ("quota.exceeded", "blocked", midnight),
        ("quota.reset", "blocked", midnight),
    ]


LIMITED = """
version: 1
timezone: UTC
currency: USD
accept_within: 35d
event_types: {use: {schema: {type: object, properties: {}}}}
meters: {calls: {event_type: use, aggregation: count, window: 1h}}
plans:
  small: {entitlements: [{feature: api, kind: metered, meter: calls, limit: 4, period: day, thresholds: [1.0]}]}
default_plan: small
"""
