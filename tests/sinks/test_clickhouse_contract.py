"""The ClickHouse in memory answers as the engine does: to the reads of the product's flow and of the tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client

from domain.values import DAY_US
from flows.catalogs import apply_catalog, judge_catalog
from flows.forget import written_log_times
from flows.metering import build
from flows.open_quotas import open_quotas
from flows.reclaim import _ENDS, _EVENTS, _FIRSTS, _PARTITIONS, ledger_of
from flows.subscriptions import SavedSubscriptions, subscribed
from tests.fakes.clickhouse import ClickHouseServer
from tests.simulation.effects import Clock, Effects
from tests.simulation.engine import Execution, Pace
from tests.simulation.workload import changed_catalog
from tests.simulation.world import TOPIC, World
from tests.tables import differences, read_tables
from tests.workload import kitchen_sink_catalog

SEED = 5


class _Recorded(Effects):
    """Feeds the log as it is read, until all is counted."""

    world: World
    run: Any

    def before(self, name: str, error: Any = None) -> None:
        if name == "log.read":
            self.world.step()
            if self.world.exhausted and self.run.is_read:
                self.world.stop.set()


@pytest.fixture(scope="module")
def inserts() -> list[tuple[str, pa.Table]]:
    """What a flow has inserted, in its order."""
    effects = _Recorded(Clock(0))
    world = effects.world = World(SEED, effects, events=150)
    found = []
    for name, table in world.clickhouse.tables.items():
        insert = table.insert

        def note(rows: pa.Table, name: str = name, insert: Callable[[pa.Table], None] = insert) -> None:
            found.append((name, rows))
            insert(rows)

        table.insert = note  # type: ignore[assignment,method-assign]
    effects.run = run = world.start(flush_rows_max=60)
    pace = Pace(epoch_seconds=100_000)
    Execution([build(**run.arguments(0))], 1, None, random.Random(SEED), world.clock, pace).run()
    assert {name for name, _ in found} == world.clickhouse.tables.keys()
    return found


@pytest.fixture
def both(
    client: Client, clients: Callable[[], Client], inserts: Sequence[tuple[str, pa.Table]]
) -> tuple[Callable[[], Client], ...]:
    """Makers of clients of the engine (which `client` empties) and of the fake, given the same inserts.

    All come in order, and then some of them again, older rows of keys too.
    """
    server = ClickHouseServer()
    again = random.Random(SEED).sample(inserts, len(inserts) // 3)
    makers = clients, lambda: cast(Client, server.client())
    for make in makers:
        with make() as one:
            for name, rows in [*inserts, *again]:
                one.insert_arrow(name, rows)
    return makers


def test_final_rows_are_alike(both: tuple[Callable[[], Client], ...]) -> None:
    real, fake = (read_tables(make()) for make in both)
    assert not differences(fake, real)
    assert min(len(real.events), len(real.rejects), len(real.usage), len(real.signals)) > 10
    assert real.subscriptions and real.usage_members and real.rated_usage and real.quotas and real.progress


def test_what_a_start_restores_claims_from_is_alike(both: tuple[Callable[[], Client], ...]) -> None:
    real, fake = (make() for make in both)
    latest = max(written_log_times(both[0], TOPIC).values())
    found = 0
    for sql in (_PARTITIONS, _EVENTS, _FIRSTS, _ENDS):
        for topic, partition, offset, since in (
            (TOPIC, 0, 0, 0),
            (TOPIC, 0, 20, 0),
            (TOPIC, 1, 0, latest - DAY_US),
            (TOPIC, 7, 0, 0),
            ("other", 0, 0, 0),
        ):
            given = {"topic": topic, "partition": partition, "offset": offset, "since": since}
            rows = [{tuple(row) for row in one.query(sql, given).result_rows} for one in (real, fake)]
            assert rows[0] == rows[1], (sql, given)
            found += len(rows[0])
    assert found > 100


def test_what_a_start_reads_besides_is_alike(both: tuple[Callable[[], Client], ...]) -> None:
    real, fake = both
    log_times = written_log_times(real, TOPIC)
    assert written_log_times(fake, TOPIC) == log_times and len(log_times) == 3
    assert ledger_of(fake(), TOPIC) == ledger_of(real(), TOPIC)
    assert subscribed(fake()) == subscribed(real())
    for partition in log_times:
        for end in (0, 30, 10**6):
            saved = [list(SavedSubscriptions(make, TOPIC).changes(partition, end)) for make in both]
            assert saved[0] == saved[1]
    applied = [judge_catalog(make(), None) for make in both]
    assert [[v.yaml for v in one.history.versions] for one in applied] == [[kitchen_sink_catalog()]] * 2
    now_us = max(log_times.values()) - 3 * DAY_US
    quotas = [sorted(open_quotas(make, applied[0].history, now_us)) for make in both]
    assert quotas[0] == quotas[1] and quotas[0]


def test_a_new_catalog_holds_from_the_same_log_time(both: tuple[Callable[[], Client], ...]) -> None:
    text = changed_catalog()
    applied = [apply_catalog(make(), text) for make in both]
    assert [one.added for one in applied] == [2, 2]
    since = {one.history.versions[-1].effective_from_us for one in applied}
    assert len(since) == 1 and min(since) > 0
    assert [apply_catalog(make(), text).added for make in both] == [None, None]
