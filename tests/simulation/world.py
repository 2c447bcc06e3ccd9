"""All that outlives the processes of a simulated deployment, and what each of its starts is given.

The log, Redis, ClickHouse and the signals topic are in memory; around them runs what runs in production: the source's
partitions and feeds, the sinks' buffers, rows and retries, `flows.reclaim`, `flows.catalogs`, `flows.open_quotas` and
`flows.forget`. What those leave to threads is done in the caller's own, so one seed is one run.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from clickhouse_connect.driver.client import Client

from domain.quota import Watched
from flows.catalogs import Applied, apply_catalog
from flows.forget import Forgetting, written_log_times
from flows.open_quotas import open_quotas
from flows.reclaim import ledger_of, reclaim
from flows.subscriptions import SavedSubscriptions
from sinks.buffer import Buffer, Item
from sinks.clickhouse import ClickHouseOutlet, Insertion, Untold
from sinks.kafka import KafkaOutlet
from sinks.partitions import SharedSink, partition_of
from sinks.redis import Sender, Waiting, restore
from tests.fakes.claims import FakeClaims
from tests.fakes.clickhouse import ClickHouseServer
from tests.fakes.log import LogServer, LogSource, Message
from tests.fakes.quotas import FakeQuotas
from tests.fakes.redis import RedisServer, quota_states
from tests.fakes.topic import SignalsTopic
from tests.oracle import Tables
from tests.simulation.effects import Clock, Effects
from tests.simulation.workload import Workload
from tests.tables import read_tables

TOPIC = "usage"
CHANNEL = "usage.signals"
WAIT_SECONDS = 30.0
FLUSH_SECONDS = 60.0
SHARDS = 4


class World:
    """What is there before the first process starts, and after the last one died.

    Args:
        seed: Of the workload.
        effects: Brackets everything that a process does to the world; holds the clock, which goes on from the
            workload's beginning.
        events: How many the workload has, about.
        partitions: Of the log, at first.
    """

    def __init__(self, seed: int, effects: Effects, *, events: int = 2000, partitions: int = 3) -> None:
        self.effects = effects
        self.clock: Clock = effects.clock
        self.workload = Workload(seed, events=events, partitions=partitions)
        self.clock.now_us = self.workload.begin_us
        self.log = LogServer(TOPIC, lambda: self.clock.now_us)
        for _ in range(partitions):
            self.log.add_partition()
        self.redis = RedisServer()
        self.clickhouse = ClickHouseServer()
        self.signals = SignalsTopic()
        self.stop = threading.Event()
        self.kept_since_us = 0
        """Claims of earlier log times were forgotten; a file in the data directory holds this."""

    @property
    def exhausted(self) -> bool:
        """Whether all of the workload is in the log."""
        return self.workload.exhausted

    def step(self, count: int = 1) -> None:
        """Let the next things happen to the log; the clock goes forward to each."""
        for _ in range(count):
            if not self.exhausted:
                self.workload.step(self.log, self.clock)

    def start(
        self, processes: int = 1, workers: int = 1, *, batch_rows_max: int = 40, flush_rows_max: int = 400
    ) -> Run:
        """What process 0 does for all of a start, before anything is read. The catalog is the workload's, at this time.

        Args:
            processes: That start together.
            workers: Threads of each.
            batch_rows_max: Messages that a source emits at once.
            flush_rows_max: Rows that a sink gathers at most.

        Raises:
            TallyError, ClickHouseError: a service failed; start again.
        """
        client = self._client()
        applied = apply_catalog(client, self.workload.catalog(), self.log.logged_until_us)
        claims = FakeClaims(
            self.redis,
            accept_within_us=applied.history.versions[0].catalog.accept_within_us,
            effects=self.effects,
        )
        source = self.log.source(rows_max=batch_rows_max, stop=self.stop, effects=self.effects)
        reclaim(claims, client, TOPIC, source.partitions, self.kept_since_us)
        quotas = FakeQuotas(self.redis, now_us=lambda: self.clock.now_us, effects=self.effects)
        quotas.adopt(ledger_of(client, TOPIC))
        run = Run(self, applied, claims, source, workers, flush_rows_max)
        restore(quotas, lambda: open_quotas(self._client, applied.history, self.clock.now_us))
        return run

    @property
    def catalogs(self) -> list[tuple[int, str]]:
        """The applied versions, as the oracle takes them."""
        rows = sorted(self.clickhouse.tables["catalogs"].final(), key=lambda row: int(row["version"]))
        return [(row["effective_from"], row["yaml"]) for row in rows]

    @property
    def messages(self) -> list[Message]:
        return self.log.messages()

    def tables(self) -> Tables:
        return read_tables(cast(Client, self.clickhouse.client()))

    def quotas(self) -> dict[tuple[str, str], dict[str, Any]]:
        return quota_states(self.redis)

    def published(self) -> list[dict[str, Any]]:
        """Every message of the signals topic."""
        return [json.loads(value) for _, value in self.signals.messages]

    def told(self) -> list[dict[str, Any]]:
        """Every message of the Redis channel."""
        return [json.loads(message) for channel, message in self.redis.published if channel == CHANNEL]

    def _client(self) -> Client:
        return cast(Client, self.clickhouse.client(self.effects))


@dataclass
class Run:
    """One start of all processes."""

    world: World
    applied: Applied
    claims: FakeClaims
    source: LogSource
    workers: int
    flush_rows_max: int

    def __post_init__(self) -> None:
        self._sinks: dict[int, ClickHouse] = {}
        world = self.world
        self._forgetting = Forgetting(
            self._forget,
            self.source.partitions,
            lambda: written_log_times(world._client, TOPIC),
            lambda: self._sinks[0].barriers if 0 in self._sinks else {},
        )

    def arguments(self, process: int) -> dict[str, Any]:
        """What `flows.metering.build` takes in one of the processes."""
        world, here = self.world, partition_of(process, self.workers)
        sink = self._sinks[process] = ClickHouse(world, self.flush_rows_max)
        return {
            "source": self.source,
            "history": self.applied.history,
            "claims": self.claims,
            "subscriptions": SavedSubscriptions(world._client, TOPIC),
            "sink": sink,
            "outlets": {"redis": SharedSink[Watched](lambda: RedisOutlet(world)), "kafka": kafka_sink(world)},
            "here": here,
            "shards": SHARDS,
            "partitions": self.source.partitions,
            "now_us": lambda: world.clock.now_us,
        }

    @property
    def is_read(self) -> bool:
        """Whether everything in the log, that can be read, was emitted."""
        return self.source.is_read

    def forget(self) -> None:
        """One step of forgetting claims that nobody can ask for any more."""
        self._forgetting.step()

    def _forget(self, log_time_us: int) -> None:
        self.world.kept_since_us = max(self.world.kept_since_us, self.claims.kept_since_us(log_time_us))
        self.claims.forget(log_time_us)


class ClickHouse(SharedSink[Item]):
    """`sinks.clickhouse.ClickHouseSink` without its thread."""

    def __init__(self, world: World, rows_max: int) -> None:
        def outlet() -> ClickHouseOutlet:
            insertion = Insertion(
                world._client(), WAIT_SECONDS, Untold(), rest=rest(world.clock), monotonic=world.clock.monotonic
            )
            return ClickHouseOutlet(
                InlineWriter(insertion),
                rows_max=rows_max,
                seconds=FLUSH_SECONDS,
                monotonic=world.clock.monotonic,
            )

        super().__init__(outlet)


def rest(clock: Clock) -> Callable[[float], bool]:
    """Pauses pass at once."""

    def pause(seconds: float) -> bool:
        clock.advance(seconds)
        return False

    return pause


class InlineWriter:
    """A `sinks.clickhouse.Writer` that writes when it is told."""

    def __init__(self, insertion: Insertion) -> None:
        self._insertion = insertion
        self.handed = 0

    def write(self, buffer: Buffer) -> None:
        self.handed += 1
        for name, table in buffer.tables(TOPIC):
            self._insertion.insert(name, table)

    def wait(self, count: int) -> None:
        assert count <= self.handed

    def abandon(self) -> None:
        self._insertion.close()


class RedisOutlet:
    """`sinks.redis.RedisOutlet` without its thread: signals are sent at once, quotas with them or at the barrier."""

    def __init__(self, world: World) -> None:
        self._sender = Sender(
            FakeQuotas(world.redis, now_us=lambda: world.clock.now_us, effects=world.effects), CHANNEL
        )
        self._waiting = Waiting()

    def write(self, items: list[Watched]) -> None:
        for item in items:
            self._waiting.add(item)
        if self._waiting.signals:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, Waiting()
        if waiting:
            self._sender.send(waiting)

    def abandon(self) -> None:
        pass


def kafka_sink(world: World) -> SharedSink[Watched]:
    """`sinks.kafka.KafkaSink` with a producer that writes at once."""
    producer = world.signals.producer(world.effects)
    options = {"bootstrap_servers": ["fake"]}
    return SharedSink(lambda: KafkaOutlet(options, topic=CHANNEL, wait_seconds=WAIT_SECONDS, producer=producer))
