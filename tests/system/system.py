"""A deployment with real services: what is sent to it, what it should make of that, and what it made."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from kafka import KafkaProducer
from tallyflow import Quotas, UsageEmitter

from engines.clickhouse_server import connect
from tests.audit import Audit, audit, read_quotas
from tests.oracle import Tables, compute_log
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka
from tests.system.supervisor import Flow, Place, wait_until
from tests.system.traffic import Traffic, Usage, read_topic
from tests.tables import differences, expected_tables, read_tables

CATALOG = (Path(__file__).with_name("catalog.yaml")).read_text(encoding="utf-8")
SOURCE = "/system"
PARTITIONS = 4


@dataclass
class System:
    """One deployment; its topics are its own, its services may be others' too."""

    folder: Path
    kafka: Kafka
    redis_url: str
    clickhouse: ClickHouse
    epoch_seconds: float = 0.5
    lease_seconds: float = 3.0
    workers: int = 2
    claim_shards: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    """In addition to, or instead of, those that follow from the rest."""

    def __post_init__(self) -> None:
        name = secrets.token_hex(4)
        self.topic, self.signals_topic = f"events-{name}", f"signals-{name}"
        self.folder.mkdir(exist_ok=True)
        (self.folder / "catalog.yaml").write_text(CATALOG, encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        """The settings of every process of the deployment."""
        return {
            "TALLY_KAFKA_BROKERS": self.kafka.bootstrap,
            "TALLY_KAFKA_TOPIC": self.topic,
            "TALLY_KAFKA_PARTITIONS": str(PARTITIONS),
            "TALLY_KAFKA_REPLICATION": "1",
            "TALLY_SIGNALS_TOPIC": self.signals_topic,
            "TALLY_REDIS_URL": self.redis_url,
            "TALLY_CLICKHOUSE_URL": self.clickhouse.url,
            "TALLY_CLAIM_SHARDS": str(self.claim_shards),
            "TALLY_EPOCH_SECONDS": str(self.epoch_seconds),
            "TALLY_LEASE_SECONDS": str(self.lease_seconds),
            "TALLY_KAFKA_WAIT_SECONDS": "5",
            "TALLY_REDIS_WAIT_SECONDS": "5",
            "TALLY_CLICKHOUSE_WAIT_SECONDS": "5",
            "TALLY_FLUSH_SECONDS": "0.2",
            "PATH": os.environ["PATH"],
            **self.settings,
        }

    def flow(
        self, processes: int = 2, builds: Mapping[int, Sequence[str]] | None = None, source: str = "kafka"
    ) -> Flow:
        """The flow under a supervisor; `builds` says which processes are of another build (`Place`)."""
        return Flow(Place(self.folder, self.environment, self.workers, builds or {}, source), processes)

    def emitter(self) -> UsageEmitter:
        return UsageEmitter(self.kafka.bootstrap, self.topic, source=SOURCE, on_full="block", block_seconds_max=60)

    def emit(self, events: Iterable[Usage]) -> None:
        """Send usage with the SDK, and wait until Kafka has it."""
        with self.emitter() as emitter:
            for usage in events:
                emitter.emit(usage.type, usage.subject, usage.data, id=usage.id, time=usage.time)
            assert emitter.flush(60)

    @contextmanager
    def sending(self, traffic: Traffic, a_second: int = 100) -> Iterator[None]:
        """Send usage as long as the block lasts, beside it; in the end Kafka has all of it."""
        ending = threading.Event()

        def send() -> None:
            with self.emitter() as emitter:
                while not ending.wait(0.1):
                    for usage in traffic.events(a_second // 10):
                        emitter.emit(usage.type, usage.subject, usage.data, id=usage.id, time=usage.time)
                delivered.append(emitter.flush(60))

        delivered: list[bool] = []
        thread = threading.Thread(target=send, name="traffic", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()
        assert delivered == [True]

    def produce(self, values: Iterable[bytes], key: bytes) -> None:
        """Send messages as they are, and wait until Kafka has them."""
        producer = KafkaProducer(bootstrap_servers=self.kafka.bootstrap, acks="all")
        try:
            for future in [producer.send(self.topic, value, key=key) for value in values]:
                future.get(timeout=60)
        finally:
            producer.close()

    def has_catalog(self) -> bool:
        """Whether a flow has started."""
        with connect(self.clickhouse.url) as client:
            return bool(client.query("SELECT count() FROM catalogs").result_rows[0][0])

    def counted(self) -> dict[int, int]:
        """By partition, up to where it is counted; empty while ClickHouse is away."""
        try:
            with connect(self.clickhouse.url) as client:
                rows = client.query("SELECT log_partition, next_offset FROM progress FINAL").result_rows
        except Exception:  # any: it is stopped and started under this test
            return {}
        return {int(partition): int(offset) for partition, offset in rows}

    def settle(self, flow: Flow) -> float:
        """Wait until all that the topic holds is counted; returns how long that took."""
        ends = {}
        for message in read_topic(self.kafka.bootstrap, self.topic):
            ends[message.partition] = message.offset + 1
        try:
            return wait_until(lambda: all(self.counted().get(p, 0) >= end for p, end in ends.items()), "counted")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.counted()} of {ends}\n{flow.logs()}") from error

    def expected(self) -> Tables:
        """What the oracle makes of the topic as it stands."""
        messages = read_topic(self.kafka.bootstrap, self.topic)
        return expected_tables(compute_log([(0, CATALOG)], self.topic, messages))

    def tables(self) -> Tables:
        with connect(self.clickhouse.url) as client:
            return read_tables(client)

    def compared(self) -> tuple[Tables, Tables]:
        """What stands in the tables, and what the oracle says should, as far as the two can be compared."""
        found, expected = self.tables(), self.expected()
        for row in [*found.progress.values(), *expected.progress.values()]:
            row.pop("log_time")  # that of an idle partition goes on
        return found, expected

    def audit(self) -> Audit:
        """What the auditor says of the tables, the quotas in Redis and the signals in Kafka; of a flow at rest."""
        published = [json.loads(one.value or b"") for one in read_topic(self.kafka.bootstrap, self.signals_topic)]
        messages = read_topic(self.kafka.bootstrap, self.topic)
        with redis.Redis.from_url(self.redis_url) as client:
            clustered = client.info("cluster")["cluster_enabled"]
            quotas = read_quotas(redis.RedisCluster.from_url(self.redis_url) if clustered else client)
        return audit([(0, CATALOG)], self.topic, messages, self.tables(), quotas=quotas, published=published)

    def check(self) -> Tables:
        """Every row of every table is what the oracle says; returns them."""
        found, expected = self.compared()
        unequal = differences(found, expected)
        assert not unequal, "\n".join(unequal)
        return found


def check_quotas(expected: Tables, quotas: Quotas) -> None:
    """What products read from Redis is what ClickHouse holds of the newest period of each entitlement."""
    newest = {}
    for (subject, _, feature, _), row in sorted(expected.quotas.items(), key=lambda item: item[0][3]):
        newest[subject, feature] = row

    def differ() -> list[str]:
        found = {key: quotas.check(*key) for key in newest}
        return [
            f"{key}: {found[key]}, not {row}"
            for key, row in newest.items()
            if (found[key].state, found[key].used) != (row["state"], row["used"])
        ]

    try:
        wait_until(lambda: not differ(), "quota states in Redis", seconds_max=10)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *differ()])) from error
