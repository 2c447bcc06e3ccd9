"""The kitchen-sink workload, in the tables of a database and in the oracle's."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from bytewax.testing import run_main
from clickhouse_connect.driver.client import Client

from config.catalog import load_history
from flows.metering import build
from flows.subscriptions import SavedSubscriptions
from sinks.clickhouse import ClickHouseSink
from sources.files import TOPIC, FileSource
from tests.fakes.claims import FakeClaims
from tests.fakes.redis import RedisServer
from tests.oracle import Tables, compute
from tests.oracle.calendars import Span, window
from tests.oracle.catalogs import History, load, where_of
from tests.oracle.totals import Key, accepted, as_input, billing, selects, zone_of
from tests.workload import generate, kitchen_sink_catalog

SEED = 1
EVENTS = 1000
SUBJECTS = 20
FILES = 4

Shares = dict[Key, dict[Span, Decimal]]
"""By period of a price (a key of `rated_usage`), the quantity of each window that counts in it."""


@dataclass(frozen=True)
class Run:
    client: Client
    tables: Tables
    shares: Shares


def count_workload(clients: Callable[[], Client], folder: Path) -> Run:
    """Run the flow over the workload into a migrated database."""
    catalog = kitchen_sink_catalog()
    files = generate(SEED, EVENTS, SUBJECTS, FILES)
    for number, content in enumerate(files):
        (folder / f"{number}.ndjson").write_bytes(content)
    history = load_history([(1, 0, catalog)])
    claims = FakeClaims(RedisServer(), accept_within_us=history.versions[0].catalog.accept_within_us)
    claims.take_over()
    claims.publish({})
    source = FileSource(str(folder / "*.ndjson"), folder / "files.json", batch_rows_max=300, stop=threading.Event())
    sink = ClickHouseSink(clients, topic=TOPIC, rows_max=1000, seconds=60, retry_seconds=1)
    options: dict[str, Any] = {"outlets": {}, "here": "00", "shards": 8, "partitions": None, "now_us": lambda: 0}
    run_main(
        build(
            source,
            history=history,
            claims=claims,
            subscriptions=SavedSubscriptions(clients, TOPIC),
            sink=sink,
            **options,
        )
    )
    tables = compute([(0, catalog)], list(enumerate(files)))
    return Run(clients(), tables, shares_of(catalog, tables))


def shares_of(catalog: str, tables: Tables) -> Shares:
    """Of each price, the windows that the accepted events fall in (count and sum meters)."""
    history = History([load(1, 0, catalog)])
    shares: Shares = defaultdict(lambda: defaultdict(Decimal))
    for position, event in accepted(tables, history):
        plan, period = billing(event)
        assert plan is not None
        for meter in event.catalog.meters:
            one = as_input(meter, event, position)
            if one is None or meter.aggregation not in ("count", "sum"):
                continue
            span = window(zone_of(event), meter.window, event.time)
            for price in event.catalog.plans[plan].get("prices") or []:
                if price["meter"] == meter.name and selects(where_of(price), one.labels):
                    share = 1 if meter.aggregation == "count" else one.value
                    shares[event.subject, plan, price["key"], *period][span] += share
    return shares
