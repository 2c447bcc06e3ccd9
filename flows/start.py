"""Starting a deployment: from settings to a flow that may run, in one order, refusing what is unsafe.

1. take the data directory; 2. start or reach Redis and ClickHouse; 3. migrate (embedded) or require it;
4. compare with what the deployment was made with; 5. open the source; 6. apply the catalog;
7. take the claim store over and bring it up to the ledger; 8. offer the embedded ClickHouse to others;
9. give Redis the open quotas that it may have lost, beside the flow.

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
from bytewax.recovery import RecoveryConfig
from clickhouse_connect.driver.client import Client

from config.clickhouse_client import clickhouse_options
from config.redis_client import redis_options
from config.settings import Settings
from domain.catalog import History
from domain.ports import TallyError
from domain.totals import STATE_VERSION
from engines import clickhouse
from engines.clickhouse import EmbeddedClickHouse
from engines.clickhouse_server import named_errors
from engines.data_directory import QUERY_WAIT_SECONDS_MAX, DataDirectory
from engines.front import ClickHouseFront
from engines.redis_server import RedisServer
from flows import recovery
from flows.catalogs import Applied, apply_catalog
from flows.metering import build
from flows.open_quotas import open_quotas
from flows.reclaim import Reclaimed, reclaim
from sinks import migrate
from sinks.clickhouse import ClickHouseSink
from sinks.cluster import synchronise
from sinks.redis import RedisSink
from sources.files import TOPIC, FileSource
from stores.claims import RedisClaims


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
    share_read: Callable[[], float]
    """How much of the input is read, from 0 to 1."""
    events_read: Callable[[], int]
    """How many events were read in this run."""


def use_packaged_time_zones() -> None:
    """Cut windows by the pinned tzdata package, not by whatever the machine has installed."""
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.ZoneInfo.clear_cache()


@contextmanager
def start(settings: Settings, *, catalog: str | None, files: str, stop: threading.Event) -> Iterator[Deployment]:
    """Open everything a run from files needs; closed when the block ends.

    Args:
        settings: Parsed settings.
        catalog: YAML text; None to go on with the applied one.
        files: The glob of the input files.
        stop: Set to end the sources.

    Raises:
        TallyError: the deployment may not start; the message says why and what to do.
    """
    use_packaged_time_zones()
    directory = DataDirectory(settings.data_dir)
    with named_errors(), ExitStack() as opened:
        opened.enter_context(directory.acquire(query_wait_seconds_max=QUERY_WAIT_SECONDS_MAX))
        client, engine = _open_clickhouse(settings, directory, opened)
        admin = client()
        opened.callback(admin.close)
        if settings.clickhouse_cluster is not None:
            synchronise(admin)
        has_state = _check_deployment(directory, settings, admin)
        source = FileSource(files, directory.path / "files.json", batch_rows_max=settings.batch_rows_max, stop=stop)
        applied = apply_catalog(admin, catalog)
        if not has_state:
            directory.write("deployment", _identity(settings))
        redis_url = _open_redis(settings, directory, opened)
        claims = _open_claims(settings, redis_url, applied.history, opened)
        reclaimed = reclaim(claims, admin, TOPIC, source.partitions)
        store = recovery.begin(directory.recovery, settings.recovery_partitions)
        sink = ClickHouseSink(
            client,
            topic=TOPIC,
            rows_max=settings.flush_rows_max,
            seconds=settings.flush_seconds,
            retry_seconds=settings.clickhouse_wait_seconds,
        )
        opened.callback(sink.close)
        quotas = RedisSink(
            redis_url,
            channel=settings.signals_channel,
            wait_seconds=settings.redis_wait_seconds,
            now_us=_now_us,
            options=redis_options(settings),
        )
        opened.callback(quotas.close)
        flow = build(
            source,
            history=applied.history,
            claims=claims,
            sink=sink,
            outlets={"redis": quotas},
            shards=settings.shards,
            partitions=None,
            now_us=_now_us,
        )
        if engine is not None:
            opened.enter_context(ClickHouseFront(engine, directory, read_only=True))
        quotas.restore(lambda: open_quotas(client, _now_us()))
        yield Deployment(
            flow,
            RecoveryConfig(str(store)),
            timedelta(seconds=settings.epoch_seconds),
            client,
            applied,
            reclaimed,
            source.share_read,
            source.events_read,
        )
        if not stop.is_set():
            quotas.wait_restored()


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


def _open_redis(settings: Settings, directory: DataDirectory, opened: ExitStack) -> str:
    """Where Redis is: the one of the settings, or an embedded one."""
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    return opened.enter_context(RedisServer(directory.redis)).url


def _open_claims(settings: Settings, url: str, history: History, opened: ExitStack) -> RedisClaims:
    claims = RedisClaims(
        url,
        shards=settings.claim_shards,
        accept_within_us=history.versions[0].catalog.accept_within_us,
        wait_seconds=settings.redis_wait_seconds,
        options=redis_options(settings),
    )
    opened.callback(claims.close)
    return claims


def _check_deployment(directory: DataDirectory, settings: Settings, client: Client) -> bool:
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
    for key, value in _identity(settings).items():
        if made.get(key) != value:
            raise TallyError(
                f"this deployment was made with {key}={made.get(key)}, now it is {value}: go on with the old "
                "value, or start with a new data directory"
            )
    return True


def _identity(settings: Settings) -> dict[str, str | int]:
    """What saved state depends on."""
    return {"topic": TOPIC, "shards": settings.shards, "state_version": STATE_VERSION}
