"""usage_by_window, against the oracle and by hand."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from domain.catalog import Aggregation
from sinks import rows
from tests.oracle import Tables
from tests.oracle.totals import Key, Row
from tests.sinks import samples
from tests.sinks.samples import MARCH, UsageRow, exact_sum, us
from tests.sinks.workload_run import Run

WINDOW = f"meter, subject, {us('window_start', 'window_end')}, dimensions_key"
EPOCH_DATE = date(1970, 1, 1)


def merged(tables: Tables) -> dict[Key, Row]:
    """The oracle's usage without `booked_on`."""
    by_window: dict[Key, list[Row]] = {}
    for (*window, booked_on), row in tables.usage.items():
        by_window.setdefault(tuple(window), []).append(row | {"booked_on": booked_on})
    members: dict[Key, int] = {}
    for *window, _ in tables.usage_members:
        members[tuple(window)] = members.get(tuple(window), 0) + 1
    return {
        window: {
            "dimensions": found[0]["dimensions"],
            "aggregation": found[0]["aggregation"],
            "value": value_of(found, members.get(window, 0)),
            "count": sum(row["count"] for row in found),
            "last_booked_on": max(row["booked_on"] for row in found),
        }
        for window, found in by_window.items()
    }


def rounded(total: Fraction, count: int) -> Decimal:
    """The quotient at 12 decimals, half to even."""
    return Decimal(f"{round(total * 10**12 / count)}E-12")


def value_of(found: list[Row], members: int) -> Decimal:
    values: list[Decimal] = [row["value"] for row in found]
    match found[0]["aggregation"]:
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "latest":
            newest = max(found, key=lambda row: (row["latest_time"], row["latest_position"]))
            return Decimal(newest["value"])
        case "unique":
            return Decimal(members)
        case "avg":
            return rounded(Fraction(exact_sum(values)), sum(row["count"] for row in found))
        case _:
            return exact_sum(values)


def test_usage_is_what_the_oracle_counts(run: Run) -> None:
    sql = f"SELECT {WINDOW}, dimensions, aggregation, value, count, last_booked_on FROM usage_by_window"
    names = ("dimensions", "aggregation", "value", "count", "last_booked_on")
    found = {row[:5]: dict(zip(names, row[5:], strict=True)) for row in run.client.query(sql).result_rows}
    wanted = merged(run.tables)
    assert found == wanted
    both = [w for w in wanted if (*w, EPOCH_DATE) in run.tables.usage and wanted[w]["last_booked_on"] != EPOCH_DATE]
    assert len({wanted[window]["aggregation"] for window in both}) >= 4


def usage_of(client: Client, *found: UsageRow) -> list[Any]:
    samples.insert(client, ("usage", samples.usage_table(*found)))
    return list(client.query("SELECT subject, value, count, last_booked_on FROM usage_by_window").result_rows)


def test_the_latest_is_the_latest_by_time_then_by_position(client: Client) -> None:
    early, late = (MARCH, 9, 9, 9), (MARCH + 1, 1, 5, 2)
    places = [early, late, (MARCH + 1, 1, 5, 1), (MARCH + 1, 1, 4, 9), (MARCH + 1, 0, 10, 9)]
    found = [samples.latest(n, booked_on_day=n, latest=place) for n, place in enumerate(places)]
    [(_, value, _, _)] = usage_of(client, *found)
    assert value == places.index(late)


def test_a_member_counts_once_however_often_it_comes(client: Client) -> None:
    unique = samples.usage(2, inputs=5, aggregation=Aggregation.UNIQUE)
    late = unique._replace(booked_on_day=20_513, inputs=3)
    members = [samples.member(name) for name in ("a", "", "b", "a")]
    samples.insert(client, ("usage_members", rows.members_table(members)))
    samples.insert(client, ("usage_members", rows.members_table(members)))
    assert usage_of(client, unique, late) == [("cust-1", 3, 8, date(2026, 3, 1))]


def test_an_average_is_rounded_half_to_even(client: Client) -> None:
    units = {"a": (1, 2), "b": (3, 2), "c": (-1, 2), "d": (-3, 2), "e": (2, 3), "f": (10**30 + 1, 2), "g": (-2, 3)}
    found = [
        samples.usage(subject=subject, aggregation=Aggregation.AVG, inputs=count)._replace(value=total)
        for subject, (total, count) in units.items()
    ]
    values = {subject: value for subject, value, _, _ in usage_of(client, *found)}
    assert values == {s: rounded(Fraction(pair[0], 10**12), pair[1]) for s, pair in units.items()}
    assert [values[s] for s in "abc"] == [0, Decimal("2E-12"), 0]


def test_a_near_tie_is_no_tie(client: Client) -> None:
    """10^18 events: the quotient is above a half by less than 10^-30."""
    count = 10**18
    average = samples.usage(aggregation=Aggregation.AVG, inputs=count)._replace(value=count // 2 + 1)
    assert usage_of(client, average)[0][1] == Decimal("1E-12")


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_windows_without_usage_are_hidden(client: Client, aggregation: Aggregation) -> None:
    nothing = samples.latest(0, aggregation=aggregation, inputs=0)
    assert usage_of(client, nothing) == []
    assert len(usage_of(client, nothing, nothing._replace(subject="b", inputs=1))) == 1


def test_minima_below_and_maxima_under_zero(client: Client) -> None:
    found = [
        samples.usage(value, subject=kind, aggregation=kind, booked_on_day=value + 10)
        for kind in (Aggregation.MIN, Aggregation.MAX)
        for value in (-3, -1, -2)
    ]
    assert {row[0]: row[1] for row in usage_of(client, *found)} == {"min": -3, "max": -1}
