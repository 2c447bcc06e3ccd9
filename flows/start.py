"""Starting a deployment: from settings to a flow that may run, in one order, refusing what is unsafe.

1. take the data directory (embedded engines) or the lease in Redis (servers); 2. start or reach Redis and
ClickHouse; 3. migrate (embedded) or require it. Then, once for all processes that start together:
4. judge the saved state, or plan how it is rebuilt from the ledger; 5. open the source; 6. apply the catalog;
7. take the claim store over and bring it up to the ledger; 8. copy the saved state. And at last in each of them:
9. build the flow; 10. offer the embedded ClickHouse to others; 11. give Redis the open quotas that it may have
lost, beside the flow.

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

from bytewax.dataflow import Dataflow
from bytewax.outputs import FixedPartitionedSink
from bytewax.recovery import RecoveryConfig
from clickhouse_connect.driver.client import Client

from config.clickhouse_client import clickhouse_options
from config.kafka_client import kafka_options
from config.redis_client import redis_options
from config.settings import Settings
from domain.ports import TallyError
from domain.quota import Watched
from engines import clickhouse
from engines.clickhouse import EmbeddedClickHouse
from engines.clickhouse_server import named_errors
from engines.data_directory import QUERY_WAIT_SECONDS_MAX, DataDirectory
from engines.front import ClickHouseFront
from engines.redis_server import RedisServer
from flows import wall_clock
from flows.catalogs import Applied
from flows.forget import Forgetting, stepping, written_log_times
from flows.inputs import Input
from flows.metering import build
from flows.observed import ObservedClaims, ObservedSource, Observer
from flows.open_quotas import open_quotas
from flows.opening import Opening
from flows.processes import ALONE, Cluster, Course, end_at_once, join
from flows.reclaim import Reclaimed, ledger_of
from flows.status import ASK_SECONDS, Status
from flows.subscriptions import SavedSubscriptions
from sinks import migrate
from sinks.clickhouse import ClickHouseSink
from sinks.cluster import synchronise
from sinks.kafka import KafkaSink
from sinks.partitions import partition_of
from sinks.redis import RedisSink
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
    rebuilds: bool = False,
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
        rebuilds: Make the saved state anew from the ledger, and go on at the source behind it. Only process 0 is asked.
        workers: Threads of each process.
        cluster: This process and those that it runs with.
        lost: Called from another thread when this instance has lost its place to a younger one, Redis was
            emptied, or the clock was set back: what it does must end the process, soon and without a flush.

    Raises:
        TallyError: the deployment may not start; the message says why and what to do.
    """
    use_packaged_time_zones()
    directory = DataDirectory(settings.data_dir)
    observer = Observer(Vitals())
    status = Status(settings, observer)
    where = _clickhouse_of(settings, directory)
    with named_errors(where), ExitStack() as opened:
        opened.enter_context(status.serving())
        opened.enter_context(wall_clock.watching(lost))
        _take_directory(directory, settings, cluster, opened)
        redis_url = _open_redis(settings, directory, opened)
        course = Course()
        rendezvous = join(settings, cluster, stop, course, lost, opened)
        client, engine = _open_clickhouse(settings, directory, opened)
        admin = client()
        opened.callback(admin.close)
        if settings.clickhouse_cluster is not None:
            synchronise(admin)
        opening = Opening(
            settings, directory, admin, client, redis_url, catalog, source, rebuilds, workers, stop, opened
        )
        prepared = opening.prepare(rendezvous, cluster.process)
        observer.started(prepared.applied.history, prepared.reclaimed)
        if prepared.input.lags is not None:
            observer.lags = prepared.input.lags
        sink, quotas, outlets = _open_sinks(settings, client, where, redis_url, prepared.input.topic, observer, opened)
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
            told=prepared.told,
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


def _open_sinks(
    settings: Settings,
    client: Callable[[], Client],
    where: str,
    redis_url: str,
    topic: str,
    observer: Observer,
    opened: ExitStack,
) -> tuple[ClickHouseSink, RedisSink, dict[str, FixedPartitionedSink[Watched, None]]]:
    """What is durable, what products read in Redis, and by step id everything that signals go to."""
    sink = ClickHouseSink(
        client,
        topic=topic,
        rows_max=settings.flush_rows_max,
        seconds=settings.flush_seconds,
        retry_seconds=settings.clickhouse_wait_seconds,
        inserts=observer,
        where=where,
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
    return sink, quotas, outlets


def _must_answer(silent_seconds: Callable[[], float]) -> Callable[[], None]:
    def ask() -> None:
        if silent_seconds() > ASK_SECONDS:
            raise TallyError("Kafka does not answer")

    return ask


def _now_us() -> int:
    return time.time_ns() // 1000


def _clickhouse_of(settings: Settings, directory: DataDirectory) -> str:
    """What errors call it."""
    return "ClickHouse" if settings.clickhouse_url is not None else f"the embedded ClickHouse in {directory.clickhouse}"


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
