"""The other views, whoever reads them and how; usage_by_window and cost_by_window have files of their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from cli.report import books
from domain.values import Position, Reason, Refusal
from sinks import rows
from tests.oracle.catalogs import History, load
from tests.oracle.subscriptions import Register
from tests.oracle.totals import Row, accepted
from tests.sinks import samples
from tests.sinks.samples import MARCH, us
from tests.sinks.workload_run import Run
from tests.workload import kitchen_sink_catalog

PERIOD = f"subject, plan, price, {us('period_start', 'period_end')}"
VIEWS = (
    "usage_by_window",
    "cost_by_window",
    "rated_usage_current",
    "quota_status",
    "subscriptions_current",
    "rejects_by_reason",
    "completeness",
)


def test_rated_usage_and_quotas_are_what_the_oracle_counts(run: Run) -> None:
    sql = f"SELECT {PERIOD}, quantity, amount, currency FROM rated_usage_current"
    found = {row[:5]: row[5:] for row in run.client.query(sql).result_rows}
    assert found == {k: (r["quantity"], r["amount"], r["currency"]) for k, r in run.tables.rated_usage.items()}
    sql = f"SELECT subject, plan, feature, {us('period_start')}, used, allowance, remaining, state FROM quota_status"
    found = {row[:4]: row[4:] for row in run.client.query(sql).result_rows}
    assert found == {
        key: (row["used"], row["allowance"], max(row["allowance"] - row["used"], Decimal(0)), row["state"])
        for key, row in run.tables.quotas.items()
    }
    assert {row[3] for row in found.values()} == {"ok", "warning", "exceeded"}


def test_what_has_no_inputs_is_hidden(client: Client) -> None:
    samples.insert(
        client,
        ("rated_usage", samples.rated_table(samples.rated(inputs=0))),
        ("quotas", samples.quotas_table(samples.quota(inputs=0))),
    )
    for view in ("rated_usage_current", "quota_status"):
        assert client.query(f"SELECT * FROM {view}").result_rows == []


def test_rejects_are_counted_by_reason(run: Run) -> None:
    wanted: dict[str, list[Row]] = {}
    for row in run.tables.rejects.values():
        wanted.setdefault(row["reason"], []).append(row)
    sql = f"SELECT log_topic, reason, events, {us('last_log_time')} FROM rejects_by_reason"
    found = {row[1]: row[2:] for row in run.client.query(sql).result_rows if row[0] == "file"}
    assert found == {reason: (len(rows_), max(row["log_time"] for row in rows_)) for reason, rows_ in wanted.items()}
    assert found.keys() == set(Reason)


def test_the_example_is_the_latest_reject(client: Client) -> None:
    one = samples.batch(payloads=())
    for n, (log_time, detail) in enumerate([(MARCH, "first"), (MARCH + 2, "last"), (MARCH + 2, "very last"), (0, "?")]):
        one.rejects.add(Position(0, n, 0), b"", Refusal(Reason.TOO_LATE, detail, log_time))
    samples.insert(client, ("rejects", rows.rejects_table(one)))
    assert client.query("SELECT events, example FROM rejects_by_reason").result_rows == [(4, "very last")]


COMPLETENESS = """
    SELECT log_partition, next_offset, messages, events, accepted, rejected, balanced FROM completeness
    ORDER BY log_partition
"""


def test_every_partition_balances(run: Run) -> None:
    found = run.client.query(COMPLETENESS).result_rows
    assert found == [
        (
            partition,
            row["next_offset"],
            row["messages"],
            row["events"],
            sum(position[1] == partition for position in run.tables.events),
            sum(position[1] == partition for position in run.tables.rejects),
            1,
        )
        for (_, partition), row in sorted(run.tables.progress.items())
    ]


def test_subscriptions_are_what_the_events_left(run: Run) -> None:
    register = Register()
    list(accepted(run.tables, History([load(1, 0, kitchen_sink_catalog())]), register))
    wanted = {
        (partition, subject, live.start, live.end, live.zone, plan, since)
        for (partition, subject), lives in register.known.items()
        for live in lives
        for since, plan in live.plans
        if since < live.last
    }
    sql = f"SELECT log_partition, subject, start, end, timezone, plan, {us('plan_from')} FROM subscriptions_current"
    found = run.client.query(sql).result_rows
    assert len(found) == len(set(found)) > 20
    assert set(found) == wanted


def test_completeness_is_cut_at_what_is_counted(client: Client) -> None:
    """Rows beyond `next_offset` come first; rows that are missing before it show."""
    whole = samples.batch(payloads=(b"a", b"b"), rejected=2)
    samples.insert(
        client,
        ("events", rows.events_table(whole)),
        ("events", rows.events_table(whole)),
        ("rejects", rows.rejects_table(whole)),
        ("events", rows.events_table(samples.batch(start=4, payloads=(b"c",)))),
        ("events", rows.events_table(samples.batch(partition=2))),
    )
    assert client.query(COMPLETENESS).result_rows == []
    for after, counts in ((1, (1, 0, 1)), (3, (2, 1, 1)), (4, (2, 2, 1)), (5, (3, 2, 1)), (6, (3, 2, 0))):
        progress = samples.batch(payloads=(), next_offset=after, messages=after, events=after)
        samples.insert(client, ("progress", rows.progress_table([rows.progress_row(progress)])))
        assert client.query(COMPLETENESS).result_rows == [(0, after, after, after, *counts)]
        assert books(client).balanced == bool(counts[-1]), "a run that is stopped there does not cry wolf"


# whoever reads


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_empty_tables_are_empty(client: Client, view: str) -> None:
    assert client.query(f"SELECT * FROM {view}").result_rows == []


SETTINGS: tuple[dict[str, Any], ...] = (
    {"session_timezone": "Asia/Tokyo", "join_use_nulls": 1},
    {"session_timezone": "America/St_Johns", "union_default_mode": "DISTINCT"},
    {"prefer_column_name_to_alias": 1},
    {"final": 1, "max_threads": 1, "optimize_move_to_prewhere": 0},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_views_do_not_depend_on_the_reader(run: Run, view: str, settings: dict[str, Any]) -> None:
    sql = f"SELECT toString(tuple(*)) AS line FROM {view} ORDER BY line"
    assert run.client.query(sql, settings=settings).result_rows == run.client.query(sql).result_rows


def test_a_reader_in_another_zone_sees_the_same_instants(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = "SELECT window_start, toUnixTimestamp(window_start) FROM usage_by_window ORDER BY ALL LIMIT 50"
    plain = run.client.query(sql).result_rows
    assert {seen.replace(tzinfo=UTC).timestamp() - stamp for seen, stamp in plain} == {0}
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for settings in ({}, {"session_timezone": "America/St_Johns"}):
            assert run.client.query(sql, settings=settings).result_rows == plain
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_text_is_read_as_utc_whatever_the_zone(run: Run) -> None:
    day = "window_start >= '2026-03-08 00:00:00' AND window_start < '2026-03-09 00:00:00'"
    sql = (
        f"SELECT min(window_start), max(window_start), count() FROM usage_by_window WHERE meter = 'requests' AND {day}"
    )
    [(first, last, count)] = run.client.query(sql, settings={"session_timezone": "Asia/Tokyo"}).result_rows
    assert datetime(2026, 3, 8) <= first < last < datetime(2026, 3, 9)  # noqa: DTZ001
    assert count > 5


# how it reads


def explain(client: Client, sql: str, **settings: Any) -> str:
    result = client.query(f"EXPLAIN indexes = 1, projections = 1 {sql}", settings=settings)
    return "\n".join(line for (line,) in result.result_rows)


@pytest.fixture
def many(client: Client) -> Client:
    """50,000 events of 500 subjects over 5,000 s, in two parts; as many windows; a price each."""
    for part in range(2):
        client.command(f"""
            INSERT INTO events SELECT
                'file', 0, number, 0, toDateTime64({MARCH // 10**6} + number / 10, 6, 'UTC') AS at, 'svc',
                concat('id-', toString(number)), 'call', concat('cust-', toString(cityHash64(number) % 500)), at,
                map(), '{{}}', 1
            FROM numbers({part * 25_000}, 25000)
        """)
        client.command(f"""
            INSERT INTO usage (meter, subject, window_start, window_end, aggregation, value, count, inputs, version)
            SELECT
                concat('m', toString(number % 5)), concat('cust-', toString(intDiv(number, 5) % 100)),
                toDateTime64({MARCH // 10**6} + 3600 * intDiv(number, 500), 6, 'UTC') AS at, at + 3600,
                'sum', 1, 1, 1, 1
            FROM numbers({part * 25_000}, 25000)
        """)
    prices = [samples.rated(subject=f"cust-{n}", selection={}) for n in range(100)]
    samples.insert(client, ("rated_usage", samples.rated_table(*prices)))
    client.command("INSERT INTO usage_members SELECT meter, subject, window_start, window_end, '', 'x' FROM usage")
    return client


def granules(plan: str, index: str) -> tuple[int, int]:
    """Of the first use of an index in a plan: granules left, of how many."""
    _, _, after = plan.partition(index)
    left, _, of = after.partition("Granules: ")[2].split()[0].partition("/")
    return int(left), int(of)


def test_an_event_is_found_by_its_id(many: Client) -> None:
    for final in ("", "FINAL"):
        left, of = granules(explain(many, f"SELECT * FROM events {final} WHERE id = 'id-12345'"), "Name: by_id")
        assert left < of / 2
    assert len(many.query("SELECT * FROM events WHERE id = 'id-12345'").result_rows) == 1


def test_a_subjects_events_in_a_time_are_found(many: Client) -> None:
    where = "subject = 'cust-7' AND time >= '2026-03-01 00:10:00' AND time < '2026-03-01 00:15:00'"
    for final in ("", "FINAL"):
        left, of = granules(explain(many, f"SELECT * FROM events {final} WHERE {where}"), "Name: by_time")
        assert left <= of / 3
    plan = explain(many, f"SELECT * FROM events WHERE {where}", min_table_rows_to_use_projection_index=0)
    assert "Name: by_subject" in plan
    assert "subject in ['cust-7', 'cust-7']" in plan
    found = many.query(f"SELECT count() FROM events WHERE {where}").result_rows
    assert found == many.query(f"SELECT count() FROM events WHERE {where} SETTINGS use_skip_indexes = 0").result_rows


def test_filters_on_usage_by_window_reach_the_key(many: Client) -> None:
    day = "window_start >= '2026-03-02 00:00:00' AND window_start < '2026-03-03 00:00:00'"
    plan = explain(many, f"SELECT * FROM usage_by_window WHERE meter = 'm1' AND subject = 'cust-7' AND {day}")
    for table in ("usage)", "usage_members)"):
        _, _, read = plan.partition(f".{table}")
        assert read.index("window_start") < read.index("Condition")
        left, of = granules(read, "Keys:")
        assert left <= of / 3
    sql = f"SELECT count() FROM usage_by_window WHERE meter = 'm1' AND subject = 'cust-7' AND {day}"
    assert many.query(sql).result_rows == [(24,)]


def test_a_filter_on_the_subject_reaches_the_keys_through_cost_by_window(many: Client) -> None:
    plan = explain(many, "SELECT * FROM cost_by_window WHERE subject = 'cust-7' AND price = 'traffic'")
    for table in ("rated_usage", "usage"):
        _, _, read = plan.partition(f".{table})")
        assert "(subject in ['cust-7', 'cust-7'])" in read.partition("Condition: ")[2].partition("\n")[0]
