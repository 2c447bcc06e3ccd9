"""Starting a deployment: from settings to a flow that may run, in one order, refusing what is unsafe.

1. take the data directory (embedded engines) or the lease in Redis (servers); 2. start or reach Redis and
ClickHouse; 3. migrate (embedded) or require it. Then, once for all processes that start together:
4. compare with what the deployment was made with; 5. open the source; 6. apply the catalog; 7. take the claim
store over and bring it up to the ledger; 8. copy the saved state. And at last in each of them: 9. build the
flow; 10. offer the embedded ClickHouse to others; 11. give Redis the open quotas that it may have lost,
beside the flow.

Every refusal is a `TallyError` that says why and what to do. What can be refused comes before the catalog
is applied, so that a start that fails leaves the old one in force. What was opened is closed in reverse.
"""

from __future__ import annotations

import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from bytewax.dataflow import Dataflow
from bytewax.outputs import FixedPartitionedSink
from bytewax.recovery import RecoveryConfig
from clickhouse_connect.driver.client import Client

from config.clickhouse_client import clickhouse_options
from config.kafka_client import kafka_options
from config.redis_client import redis_options
from config.settings import Settings
from domain.catalog import History
from domain.ports import TallyError
from domain.quota import Watched
from domain.totals import STATE_VERSION
from engines import clickhouse
from engines.clickhouse import EmbeddedClickHouse
from engines.clickhouse_server import named_errors
from engines.data_directory import QUERY_WAIT_SECONDS_MAX, DataDirectory
from engines.front import ClickHouseFront
from engines.redis_server import RedisServer
from flows import recovery
from flows.catalogs import Applied, apply_catalog, judge_catalog, sha256_of
from flows.forget import Forgetting, Forgotten, stepping, written_log_times
from flows.inputs import Input, open_input, topic_of
from flows.metering import build
from flows.observed import ObservedClaims, ObservedSource, Observer
from flows.open_quotas import open_quotas
from flows.processes import ALONE, Cluster, Course, end_at_once, join
from flows.reclaim import Reclaimed, ledger_of, reclaim
from flows.status import ASK_SECONDS, Status
from flows.subscriptions import SavedSubscriptions
from sinks import migrate
from sinks.clickhouse import ClickHouseSink
from sinks.cluster import synchronise
from sinks.kafka import KafkaSink, ensure_topic
from sinks.partitions import partition_of
from sinks.redis import RedisSink
from stores.claims import RedisClaims, Session
from stores.ping import ping
from telemetry.vitals import Vitals


@dataclass(frozen=True, slots=True)
class Deployment:
    """A flow ready to run, and what its start found."""

    flow: Dataflow
    recovery: RecoveryConfig
    epoch_interval: timedelta
    client: Callable[[], Client]
    """Makes a client of the database `tallyflow`, for use beside the flow."""
    applied: Applied
    reclaimed: Reclaimed
    input: Input
    workers: int
    cluster: Cluster
    course: Course
    observer: Observer
    """What is seen of the flow as it runs."""


def use_packaged_time_zones() -> None:
    """Cut windows by the pinned tzdata package, not by whatever the machine has installed."""
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.ZoneInfo.clear_cache()


@contextmanager
def start(
    settings: Settings,
    *,
    catalog: str | None,
    source: str,
    stop: threading.Event,
    workers: int = 1,
    cluster: Cluster = ALONE,
    lost: Callable[[TallyError], None] = end_at_once,
) -> Iterator[Deployment]:
    """Open everything that a run needs; closed when the block ends.

    Args:
        settings: Parsed settings.
        catalog: YAML text; None to go on with the applied one.
        source: What to read: `kafka` or `file:GLOB`.
        stop: Set to end the sources, in all processes.
        workers: Threads of each process.
        cluster: This process and those that it runs with.
        lost: Called from another thread when this instance has lost its place to a younger one, or Redis
            emptied: what it does must end the process, soon and without a flush.

    Raises:
        TallyError: the deployment may not start; the message says why and what to do.
    """
    use_packaged_time_zones()
    directory = DataDirectory(settings.data_dir)
    observer = Observer(Vitals())
    status = Status(settings, observer)
    with named_errors(), ExitStack() as opened:
        opened.enter_context(status.serving())
        _take_directory(directory, settings, cluster, opened)
        redis_url = _open_redis(settings, directory, opened)
        course = Course()
        rendezvous = join(settings, cluster, stop, course, lost, opened)
        client, engine = _open_clickhouse(settings, directory, opened)
        admin = client()
        opened.callback(admin.close)
        if settings.clickhouse_cluster is not None:
            synchronise(admin)
        opening = _Opening(settings, directory, admin, redis_url, catalog, source, workers, stop, opened)
        if rendezvous is None:
            prepared = opening.lead()
        elif cluster.process == 0:
            found: list[_Prepared] = []
            rendezvous.meet(lambda: opening.announce(found))
            prepared = found[0]
        else:
            prepared = opening.follow(cluster.process, rendezvous.meet(dict))
        observer.started(prepared.applied.history, prepared.reclaimed)
        if prepared.input.lags is not None:
            observer.lags = prepared.input.lags
        sink = ClickHouseSink(
            client,
            topic=prepared.input.topic,
            rows_max=settings.flush_rows_max,
            seconds=settings.flush_seconds,
            retry_seconds=settings.clickhouse_wait_seconds,
            inserts=observer,
        )
        opened.callback(sink.close)
        quotas = RedisSink(
            redis_url,
            channel=settings.signals_channel,
            wait_seconds=settings.redis_wait_seconds,
            now_us=_now_us,
            options=redis_options(settings),
            told=observer.sent("redis"),
        )
        opened.callback(quotas.close)
        outlets: dict[str, FixedPartitionedSink[Watched, None]] = {"redis": quotas}
        if settings.kafka_brokers is not None:
            signals = KafkaSink(
                kafka_options(settings),
                topic=settings.signals_topic,
                wait_seconds=settings.kafka_wait_seconds,
                told=observer.sent("kafka"),
            )
            opened.callback(signals.close)
            outlets["kafka"] = signals
        flow = build(
            ObservedSource(prepared.input.source, observer),
            history=prepared.applied.history,
            claims=ObservedClaims(prepared.claims, observer),
            subscriptions=SavedSubscriptions(client, prepared.input.topic),
            sink=sink,
            outlets=outlets,
            here=partition_of(cluster.process, workers),
            shards=settings.shards,
            partitions=prepared.input.partitions if prepared.input.monotone else None,
            now_us=_now_us,
            probe=observer,
        )
        opened.enter_context(status.asking("redis", lambda: ping(redis_url, redis_options(settings))))
        opened.enter_context(status.asking("clickhouse", lambda: client().close()))
        if prepared.input.ends is not None:
            opened.enter_context(status.measuring(prepared.input.ends))
        if prepared.input.silent_seconds is not None:
            opened.enter_context(status.asking("kafka", _must_answer(prepared.input.silent_seconds)))
        if cluster.process == 0 and prepared.input.monotone:
            forgetting = Forgetting(
                opening.forgotten(prepared.claims).forget,
                prepared.input.partitions,
                lambda: written_log_times(client, prepared.input.topic),
                lambda: sink.barriers,
            )
            opened.enter_context(stepping(forgetting))
        if engine is not None:
            opened.enter_context(ClickHouseFront(engine, directory, read_only=True))
        if cluster.process == 0:
            ledger = ledger_of(admin, prepared.input.topic)
            quotas.restore(ledger, lambda: open_quotas(client, prepared.applied.history, _now_us()))
        yield Deployment(
            flow,
            RecoveryConfig(str(prepared.store)),
            timedelta(seconds=settings.epoch_seconds),
            client,
            prepared.applied,
            prepared.reclaimed,
            prepared.input,
            workers,
            cluster,
            course,
            observer,
        )
        if cluster.process == 0 and not stop.is_set():
            quotas.wait_restored()


class _Prepared(NamedTuple):
    """What holds for one start, in each process."""

    applied: Applied
    input: Input
    claims: RedisClaims
    reclaimed: Reclaimed
    store: Path


@dataclass(frozen=True, slots=True)
class _Opening:
    """The part of a start that one process does for all."""

    settings: Settings
    directory: DataDirectory
    admin: Client
    redis_url: str
    catalog: str | None
    source: str
    workers: int
    stop: threading.Event
    opened: ExitStack

    def lead(self) -> _Prepared:
        """Check, apply, re-claim and copy."""
        identity = self._identity()
        has_state = _check_deployment(self.directory, identity, self.admin)
        catalog = judge_catalog(self.admin, self.catalog).history.versions[0].catalog
        source = self._input(catalog.accept_within_us)
        if self.settings.kafka_brokers is not None:
            _ensure_signals_topic(self.settings)
        applied = apply_catalog(self.admin, self.catalog)
        if not has_state:
            self.directory.write("deployment", identity)
        claims = self._claims(applied.history)
        kept_since_us = self.forgotten(claims).kept_since_us
        reclaimed = reclaim(claims, self.admin, source.topic, source.partitions, kept_since_us)
        store = recovery.begin(self.directory.recovery, self.settings.recovery_partitions)
        return _Prepared(applied, source, claims, reclaimed, store)

    def announce(self, found: list[_Prepared]) -> dict[str, Any]:
        """Lead, and say what the others must know."""
        prepared = self.lead()
        found.append(prepared)
        return {
            "alike": self._alike(),
            "catalog": prepared.applied.history.versions[-1].sha256,
            "claims": prepared.claims.session(),
            "store": prepared.store.name,
        }

    def follow(self, process: int, content: dict[str, Any]) -> _Prepared:
        """Go on with what process 0 prepared."""
        for key, value in self._alike().items():
            if content["alike"].get(key) != value:
                raise TallyError(
                    f"process 0 runs with {key}={content['alike'].get(key)}, process {process} with {value}: "
                    "give all processes of a deployment the same"
                )
        applied = judge_catalog(self.admin, None)
        current = applied.history.versions[-1]
        if current.sha256 != content["catalog"] or (self.catalog and sha256_of(self.catalog) != current.sha256):
            raise TallyError(f"process {process} has another catalog than process 0: give all processes the same")
        store = self.directory.recovery / content["store"]
        if not store.is_dir():
            raise TallyError(f"{store} is not there: all processes of a deployment must share TALLY_DATA_DIR")
        source = self._input(None)
        claims = self._claims(applied.history)
        claims.adopt(Session(*content["claims"]))
        return _Prepared(applied, source, claims, Reclaimed(0), store)

    def _input(self, accept_within_us: int | None) -> Input:
        source = open_input(self.source, self.settings, self.directory, self.stop, accept_within_us=accept_within_us)
        self.opened.callback(source.close)
        return source

    def _claims(self, history: History) -> RedisClaims:
        claims = RedisClaims(
            self.redis_url,
            shards=self.settings.claim_shards,
            accept_within_us=history.versions[0].catalog.accept_within_us,
            wait_seconds=self.settings.redis_wait_seconds,
            ledger=self._ledger(),
            options=redis_options(self.settings),
        )
        self.opened.callback(claims.close)
        return claims

    def forgotten(self, claims: RedisClaims) -> Forgotten:
        return Forgotten(self.directory, self._ledger(), claims)

    def _ledger(self) -> str:
        return ledger_of(self.admin, topic_of(self.source, self.settings))

    def _identity(self) -> dict[str, Any]:
        """What saved state depends on."""
        topic = topic_of(self.source, self.settings)
        return {"topic": topic, "shards": self.settings.shards, "state_version": STATE_VERSION}

    def _alike(self) -> dict[str, Any]:
        """What must be the same in every process."""
        more = {"workers": self.workers, "claim_shards": self.settings.claim_shards, "version": version("tallyflow")}
        return {**self._identity(), **more}


def _take_directory(directory: DataDirectory, settings: Settings, cluster: Cluster, opened: ExitStack) -> None:
    """Make sure that nobody else uses the embedded engines; what runs on servers has a lease in Redis instead."""
    if settings.redis_url is not None and settings.clickhouse_url is not None:
        directory.make()
        return
    if cluster.processes > 1:
        raise TallyError(
            "several processes cannot share embedded engines: set TALLY_REDIS_URL and TALLY_CLICKHOUSE_URL"
        )
    opened.enter_context(directory.acquire(query_wait_seconds_max=QUERY_WAIT_SECONDS_MAX))


def _open_redis(settings: Settings, directory: DataDirectory, opened: ExitStack) -> str:
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    return opened.enter_context(RedisServer(directory.redis)).url


def _must_answer(silent_seconds: Callable[[], float]) -> Callable[[], None]:
    def ask() -> None:
        if silent_seconds() > ASK_SECONDS:
            raise TallyError("Kafka does not answer")

    return ask


def _now_us() -> int:
    return time.time_ns() // 1000


def _open_clickhouse(
    settings: Settings, directory: DataDirectory, opened: ExitStack
) -> tuple[Callable[[], Client], EmbeddedClickHouse | None]:
    """A maker of clients of the migrated database, and the engine if it is embedded."""
    if settings.clickhouse_url is not None:
        options = clickhouse_options(settings)
        with clickhouse.connect(**options) as client:
            migrate.require_current(client, settings.clickhouse_cluster)
        return lambda: clickhouse.connect(**options), None
    engine = opened.enter_context(EmbeddedClickHouse(directory.clickhouse))
    with engine.client() as client:
        migrate.create_database(client)
    with engine.client(migrate.DATABASE) as client:
        migrate.migrate(client)
    return lambda: engine.client(migrate.DATABASE), engine


def _ensure_signals_topic(settings: Settings) -> None:
    ensure_topic(
        kafka_options(settings),
        settings.signals_topic,
        partitions=settings.kafka_partitions,
        replication=settings.kafka_replication,
        wait_seconds=settings.kafka_wait_seconds,
    )


def _check_deployment(directory: DataDirectory, identity: dict[str, Any], client: Client) -> bool:
    """Refuse to go on with state that does not belong to this deployment or this ledger.

    Returns:
        Whether there is saved state to go on from.
    """
    if recovery.newest(directory.recovery) is None:
        if int(client.query("SELECT count() FROM events").result_rows[0][0]):
            raise TallyError(
                f"the ledger holds events, but {directory.recovery} has no saved state: going on would count "
                "from zero. Restore that directory, or start with a new data directory and run the files again."
            )
        return False
    made = directory.read("deployment")
    if made is None:
        raise TallyError(
            f"{directory.recovery} has saved state, but the record of what made it is missing from {directory.path}: "
            "restore deployment.json, or start with a new data directory and run the files again"
        )
    for key, value in identity.items():
        if made.get(key) != value:
            raise TallyError(
                f"this deployment was made with {key}={made.get(key)}, now it is {value}: go on with the old "
                "value, or start with a new data directory"
            )
    return True
