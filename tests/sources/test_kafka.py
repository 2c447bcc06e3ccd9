"""The Kafka source against a real broker: what comes out, in which order, and after what."""

from __future__ import annotations

import time
from typing import Any

import pytest

from config.catalog import load_catalog
from domain.catalog import CatalogVersion, History
from domain.decode import BatchDecoder
from sources.kafka import KafkaState
from sources.kafka_clock import LogClock
from tests.services.kafka import Kafka
from tests.sources.kafka_scenes import LOG_APPEND_TIME, Scene, produce, producer, read_all


@pytest.fixture
def name(kafka: Kafka, request: pytest.FixtureRequest) -> str:
    """A topic of one partition for this test."""
    made = f"source-{abs(hash(request.node.nodeid)) % 10**12}"
    kafka.create_topic(made, 1, **LOG_APPEND_TIME)
    return made


def now_us() -> int:
    return time.time_ns() // 1000


def test_every_message_once_in_order_with_the_brokers_time(kafka: Kafka, name: str) -> None:
    before = now_us()
    produce(kafka, name, [b"%d" % i for i in range(1000)], timestamp_ms=1)
    read = read_all(kafka, name, 1000)
    assert read.payloads() == [b"%d" % i for i in range(1000)]
    assert read.offsets() == list(range(1000))
    assert all(len(batch.payloads) <= 100 for batch in read.batches[0])
    times = [us for batch in read.batches[0] for us in batch.log_times_us or []]
    assert all(before - 10_000_000 < us < now_us() + 10_000_000 for us in times)
    assert read.states[0][1:4] == (1000, 1000, 1000)
    assert read.batches[0][0].attributes is None


def test_it_knows_the_newest_log_time_of_all_partitions(kafka: Kafka) -> None:
    kafka.create_topic("source-newest", 3, **LOG_APPEND_TIME)
    with Scene(kafka, "source-newest", build=False) as scene:
        assert scene.source.logged_until_us() == 0
    for partition in (2, 0):
        produce(kafka, "source-newest", [b"1", b"2"], partition, timestamp_ms=1)
    read = read_all(kafka, "source-newest", 4)
    with Scene(kafka, "source-newest", build=False) as scene:
        newest = max(us for batches in read.batches.values() for batch in batches for us in batch.log_times_us or [])
        assert scene.source.logged_until_us() == newest > 0


def test_partitions_are_read_side_by_side(kafka: Kafka) -> None:
    kafka.create_topic("source-several", 3, **LOG_APPEND_TIME)
    for partition in range(3):
        produce(kafka, "source-several", [b"%d/%d" % (partition, i) for i in range(300)], partition)
    read = read_all(kafka, "source-several", 900)
    for partition in range(3):
        assert read.payloads(partition) == [b"%d/%d" % (partition, i) for i in range(300)]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches(kafka: Kafka, codec: str) -> None:
    kafka.create_topic(f"source-{codec}", 1, **LOG_APPEND_TIME)
    values = [b"%d" % i * 100 for i in range(3000)]
    with producer(kafka, compression_type=codec) as client:
        for value in values:
            client.send(f"source-{codec}", value)
        client.flush()
    assert read_all(kafka, f"source-{codec}", 3000).payloads() == values


def test_a_snapshot_goes_on_where_it_was_taken(kafka: Kafka, name: str) -> None:
    produce(kafka, name, [b"%d" % i for i in range(500)])
    with Scene(kafka, name) as scene:
        first = scene.until(lambda read: read.states.get(0, KafkaState("", 0)).next_offset >= 200)
    produce(kafka, name, [b"%d" % i for i in range(500, 600)])
    rest = read_all(kafka, name, 600 - len(first.payloads()), first.states)
    assert first.payloads() + rest.payloads() == [b"%d" % i for i in range(600)]
    assert rest.batches[0][0].start_offset == first.states[0].next_offset
    assert rest.states[0][1:4] == (600, 600, 600)


def test_stop_ends_every_partition_at_its_next_poll(kafka: Kafka, name: str) -> None:
    produce(kafka, name, [b"1"])
    with Scene(kafka, name) as scene:
        scene.stop.set()
        with pytest.raises(StopIteration):
            scene.parts[0].next_batch()


def test_aborted_messages_are_not_seen_and_their_offsets_are_covered(kafka: Kafka, name: str) -> None:
    with producer(kafka, transactional_id=f"tx-{name}") as client:
        client.init_transactions()
        for number, commit in enumerate([True, False, True, False]):
            client.begin_transaction()
            client.send(name, b"kept %d" % number if commit else b"aborted")
            client.flush()
            if commit:
                client.commit_transaction()
            else:
                client.abort_transaction()
    with Scene(kafka, name) as scene:
        read = scene.until(lambda read: read.states.get(0, KafkaState("", 0)).next_offset >= 8)
    assert read.payloads() == [b"kept 0", b"kept 2"]
    assert read.states[0][1:4] == (8, 2, 2), "four messages, four markers"


def test_markers_alone_move_the_offset(kafka: Kafka, name: str) -> None:
    produce(kafka, name, [b"before"])
    with Scene(kafka, name) as scene:
        scene.until(lambda read: read.payloads())
        with producer(kafka, transactional_id=f"tx-{name}") as client:
            client.init_transactions()
            client.begin_transaction()
            client.send(name, b"aborted")
            client.flush()
            client.abort_transaction()
        read = scene.until(lambda read: read.states[0].next_offset >= 3)
    last = read.batches[0][-1]
    assert (last.start_offset, last.next_offset, last.payloads) == (1, 3, [])


def test_an_open_transaction_holds_back_and_is_not_idle(kafka: Kafka, name: str) -> None:
    with producer(kafka, transactional_id=f"tx-{name}") as client:
        client.init_transactions()
        client.begin_transaction()
        client.send(name, b"open").get(timeout=30)
        later = LogClock()
        later.see(now_us() + 3600 * 10**6)
        with Scene(kafka, name, clock=later) as scene:
            produce(kafka, name, [b"behind it"])
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                scene.poll()
                time.sleep(0.01)
            assert scene.read.batches == {}, "neither messages nor a log time"
            assert scene.source.lags()[0].offsets == 2
            client.commit_transaction()
            read = scene.until(lambda read: len(read.payloads()) == 2)
    assert read.payloads() == [b"open", b"behind it"]


@pytest.fixture
def history() -> History:
    """One event type `t` without properties."""
    catalog = load_catalog(
        "{version: 1, currency: USD, event_types: {t: {schema: {type: object}}}, meters: {}, plans: {}}"
    )
    return History((CatalogVersion(1, 0, catalog, "", ""),))


def event(**changes: Any) -> dict[str, str]:
    return {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "subject": "c", **changes}


def headers(**values: bytes) -> list[tuple[str, bytes]]:
    """CloudEvents headers, and `content_type` for content-type."""
    return [("content-type" if key == "content_type" else f"ce_{key}", value) for key, value in values.items()]


class BadName(str):
    """A header's name that is no UTF-8 on the wire."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode().replace(b"?", b"\xc3\x28\xff")


BINARY = {key: value.encode() for key, value in event().items()}


def test_the_content_type_decides_the_mode(kafka: Kafka, name: str) -> None:
    structured = b'{"specversion":"1.0"}'
    batch = b'[{"id":"1"}, {"id":"2"}]'
    sent: list[tuple[bytes | None, list[tuple[str, bytes]]]] = [
        (b'{"n":1}', headers(**BINARY, content_type=b"application/json")),
        (b"[1,2]", headers(**BINARY)),
        (structured, headers(**BINARY, content_type=b"Application/CloudEvents+json; charset=UTF-8")),
        (structured, []),
        (structured, [(BadName("?"), b"\xff"), ("content-type", b"application/json")]),
        (batch, headers(content_type=b"application/cloudevents-batch+json")),
        (b"{}", [*headers(**BINARY), ("ce_subject", "späť".encode())]),
    ]
    for value, some in sent:
        produce(kafka, name, [value], headers=some, key=b"key")
    read = read_all(kafka, name, 8)
    assert read.payloads() == [
        b'{"n":1}',
        b"[1,2]",
        structured,
        structured,
        structured,
        b'{"id":"1"}',
        b'{"id":"2"}',
        b"{}",
    ]
    assert read.attributes()[0] == event(datacontenttype="application/json")
    assert read.attributes()[1] == event(), "binary data is not a batch"
    assert read.attributes()[2:7] == [None] * 5
    assert read.attributes()[7] == event(subject="späť")
    assert read.offsets() == [0, 1, 2, 3, 4, 5, 5, 6]
    assert read.states[0][1:4] == (7, 7, 8)


def test_bad_messages_become_rejects_and_harm_no_neighbour(kafka: Kafka, name: str, history: History) -> None:
    bad: list[tuple[bytes | None, list[tuple[str, bytes]]]] = [
        (None, []),
        (None, headers(**BINARY)),
        (b"", []),
        (b"{}", headers(**{**BINARY, "subject": b"\xff"})),
        (b"{}", [*headers(**BINARY), (BadName("ce_?"), b"x")]),
        (b"\xff", headers(**BINARY)),
        (b"null", []),
    ]
    good = b'{"specversion":"1.0","id":"g","source":"s","type":"t","subject":"c","data":{}}'
    for value, some in bad:
        produce(kafka, name, [value], headers=some, key=b"key")
    produce(kafka, name, [good])
    read = read_all(kafka, name, len(bad) + 1)
    decoder = BatchDecoder(history)
    decoded = [decoder.decode(batch) for batch in read.batches[0]]
    rejects = [
        (offset, reason.value)
        for batch in decoded
        for offset, reason in zip(batch.rejects.offsets, batch.rejects.reasons, strict=True)
    ]
    assert rejects == [(offset, "malformed") for offset in range(len(bad))]
    assert [offset for batch in decoded for offset in batch.events.offsets] == [len(bad)]
