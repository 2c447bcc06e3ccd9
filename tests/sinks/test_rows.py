"""Every value survives the way into ClickHouse and back, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import given, strategies

from domain.catalog import Aggregation
from domain.pricing import Flat, Graduated, Matrix, Package, PerUnit, PriceModel, Tier, Volume
from domain.quota import SignalType
from domain.values import (
    AMOUNT_SCALE,
    DAY_US,
    QUANTITY_SCALE,
    Position,
    Reason,
    Refusal,
    SubscriptionAction,
    SubscriptionChange,
)
from flows.subscriptions import SavedSubscriptions
from sinks import rows
from tests.sinks import samples
from tests.sinks.samples import MARCH, TOPIC

QUANTITY_END = 10**38
"""Decimal(38, 12) holds what is less, in units of 10^-12."""
AMOUNT_END = 10**76
TEXTS = (
    "", " ", "é", "e\u0301", "日本", "🙂", "👩‍👩‍👧", "nul\0nul", "line\nline\r\n", '"quoted"', "it's", "back\\slash",
    "\\N", "\u2028", "\x7f\x01", '["a","b"]', "x" * 10_000,
)  # fmt: skip
BYTES = (b"", b"\xff", b"\xed\xa0\x80", b"\x00\x01", b"\xc0\xaf{", bytes(range(256)), b"\n", b'{"a":1}\r', b"\\x")


def stored(client: Client, sql: str) -> list[Any]:
    """The only column of a query."""
    return [row[0] for row in client.query(sql).result_rows]


def exact(number: int, decimals: int) -> Decimal:
    return Decimal(f"{number}E-{decimals}")


def test_quantities_are_exact_to_the_last_digit(client: Client) -> None:
    edges = [0, 1, QUANTITY_SCALE, 10**26 - 1, 10**26 * QUANTITY_SCALE - 1, QUANTITY_END - 1, 2**63, 2**64, 2**126]
    values = [*edges, *(-edge for edge in edges)]
    found = [samples.usage(value=0, inputs=1, subject=f"{n:02}")._replace(value=v) for n, v in enumerate(values)]
    samples.insert(client, ("usage", samples.usage_table(*found)))
    assert stored(client, "SELECT value FROM usage FINAL ORDER BY subject") == [exact(v, 12) for v in values]
    texts = stored(client, "SELECT toString(value) FROM usage FINAL WHERE subject IN ('03', '04') ORDER BY subject")
    assert texts == ["99999999999999.999999999999", "99999999999999999999999999.999999999999"]


def test_amounts_are_exact_to_the_last_digit(client: Client) -> None:
    edges = [0, 1, AMOUNT_SCALE, QUANTITY_END - 1, AMOUNT_END - 1, 2**127, 2**128, 2**251]
    values = [*edges, *(-edge for edge in edges)]
    found = [samples.rated(subject=f"{n:02}")._replace(amount=v) for n, v in enumerate(values)]
    samples.insert(client, ("rated_usage", samples.rated_table(*found)))
    assert stored(client, "SELECT amount FROM rated_usage FINAL ORDER BY subject") == [exact(v, 24) for v in values]


@given(strategies.integers(1 - QUANTITY_END, QUANTITY_END - 1), strategies.integers(1 - AMOUNT_END, AMOUNT_END - 1))
def test_arrow_reads_the_same_numbers(quantity: int, amount: int) -> None:
    assert rows.quantities([0, quantity]).to_pylist()[1] == exact(quantity, 12)
    assert rows.amounts([0, amount]).to_pylist()[1] == exact(amount, 24)


def test_payloads_are_the_exact_bytes(client: Client) -> None:
    samples.insert(client, ("events", rows.events_table(samples.batch(payloads=BYTES))))
    found = stored(client, "SELECT hex(payload) FROM events FINAL ORDER BY log_offset")
    assert [bytes.fromhex(text) for text in found] == list(BYTES)
    one = samples.batch(payloads=())
    for n, payload in enumerate(BYTES):
        one.rejects.add(Position(0, n, 0), payload, Refusal(Reason.MALFORMED, ""))
    samples.insert(client, ("rejects", rows.rejects_table(one)))
    found = stored(client, "SELECT hex(payload) FROM rejects FINAL ORDER BY log_offset")
    assert [bytes.fromhex(text) for text in found] == list(BYTES)


def test_subscriptions_have_an_end_or_none(client: Client, clients: Callable[[], Client]) -> None:
    made = [
        SubscriptionChange(
            7, n, MARCH, "cust-1", SubscriptionAction.CREATE, "pro", date(2100, 12, 31), end, "UTC", MARCH
        )
        for n, end in enumerate((None, date(2026, 3, 31)))
    ]
    samples.insert(client, ("subscriptions", rows.subscriptions_table(replace(samples.batch(), changes=made))))
    assert SavedSubscriptions(clients, TOPIC).changes(0, 8) == made
    assert SavedSubscriptions(clients, TOPIC).changes(0, 7) == []
    assert SavedSubscriptions(clients, TOPIC).changes(1, 8) == []


def test_texts_are_the_same_texts(client: Client) -> None:
    one = samples.batch(payloads=(b"",) * len(TEXTS))
    for column in (one.events.sources, one.events.ids, one.events.types, one.events.subjects):
        column[:] = TEXTS
    samples.insert(client, ("events", rows.events_table(one)))
    sql = "SELECT source, id, type, subject FROM events FINAL ORDER BY log_offset"
    assert client.query(sql).result_rows == [(text,) * 4 for text in TEXTS]


def test_dimensions_are_the_labels_with_their_values(client: Client) -> None:
    labels = ("region", "client.os")
    keys = ['["",""]', '["nul\\u0000","日本"]', '["a\\"b","new\\nline"]', '["\\\\","{}"]']
    values = [("", ""), ("nul\0", "日本"), ('a"b', "new\nline"), ("\\", "{}")]
    found = [samples.usage(labels=labels, dimensions_key=key) for key in keys]
    samples.insert(client, ("usage", samples.usage_table(*found, samples.usage())))
    result = client.query("SELECT dimensions_key, dimensions FROM usage FINAL").result_rows
    by_key = {row[0]: row[1] for row in result}
    wanted = {key: dict(zip(labels, pair, strict=True)) for key, pair in zip(keys, values, strict=True)}
    assert by_key == wanted | {"": {}}


def test_attributes_are_a_map_that_may_be_empty(client: Client) -> None:
    attributes = [None, {}, {"ce_type": "call", "ce_é": "日本\0", "": ""}]
    one = samples.batch(payloads=(b"", b"", b""), attributes=attributes)
    samples.insert(client, ("events", rows.events_table(one)))
    assert stored(client, "SELECT attributes FROM events FINAL ORDER BY log_offset") == [{}, {}, attributes[2]]


def test_positions_reach_as_far_as_logs_do(client: Client) -> None:
    far = Position(2**32 - 1, 2**64 - 1, 2**32 - 1)
    one = samples.batch(payloads=())
    one.rejects.add(far, b"", Refusal(Reason.CONFLICT, "", MARCH), far, 2**64 - 1)
    one.rejects.add(Position(0, 0, 0), b"", Refusal(Reason.MALFORMED, ""))
    samples.insert(client, ("rejects", rows.rejects_table(one)))
    sql = "SELECT log_offset, log_index, first_position, first_content FROM rejects FINAL ORDER BY log_offset DESC"
    (offset, index, first, content), (_, _, nowhere, nothing) = client.query(sql).result_rows
    assert (offset, index, content) == (far.offset, far.element, 2**64 - 1)
    assert tuple(first.values()) == (TOPIC, *far)
    assert (*nowhere.values(), nothing) == ("", 0, 0, 0, 0)


def test_instants_keep_their_microsecond(client: Client) -> None:
    times = [0, 1, 946_684_800_000_000, MARCH + 999_999, 4_133_980_799_999_999]
    one = samples.batch(payloads=(b"",) * len(times))
    one.events.times_us[:] = times
    samples.insert(client, ("events", rows.events_table(one)))
    assert stored(client, "SELECT toUnixTimestamp64Micro(time) FROM events FINAL ORDER BY log_offset") == times
    last = "SELECT toString(time) FROM events FINAL ORDER BY log_offset DESC LIMIT 1"
    assert stored(client, last) == ["2100-12-31 23:59:59.999999"]


def test_booked_on_is_a_day(client: Client) -> None:
    days = [0, 20_513, 47_846]
    samples.insert(client, ("usage", samples.usage_table(*(samples.usage(booked_on_day=day) for day in days))))
    found = stored(client, "SELECT booked_on FROM usage FINAL ORDER BY booked_on")
    assert found == [date(1970, 1, 1) + timedelta(days=day) for day in days]
    assert found[1] == date(2026, 3, 1)


def test_the_latest_stands_beside_rows_that_have_none(client: Client) -> None:
    found = [samples.usage(subject="a"), samples.latest(subject="b")]
    samples.insert(client, ("usage", samples.usage_table(*found)))
    sql = "SELECT toUnixTimestamp64Micro(latest_time), latest_position FROM usage FINAL ORDER BY subject"
    (none, nowhere), (time, place) = client.query(sql).result_rows
    assert (none, *nowhere.values()) == (0, "", 0, 0, 0)
    assert (time, *place.values()) == (MARCH + 1, TOPIC, 3, 2**47, 2)


def test_tiers_may_be_many_one_or_none(client: Client) -> None:
    tiers: list[tuple[tuple[int, int], ...]] = [
        (),
        ((5, 7),),
        ((QUANTITY_END - 1, AMOUNT_END - 1), (1 - QUANTITY_END, 1 - AMOUNT_END), (0, 0)),
        (),
    ]
    found = [samples.rated(subject=str(n), tiers=one) for n, one in enumerate(tiers)]
    assert len(samples.rated_updates(found)) == 1
    samples.insert(client, ("rated_usage", samples.rated_table(*found)))
    result = stored(client, "SELECT tiers FROM rated_usage FINAL ORDER BY subject")
    assert [[tuple(tier.values()) for tier in row] for row in result] == [
        [(exact(quantity, 12), exact(amount, 24)) for quantity, amount in one] for one in tiers
    ]


def test_selections_may_be_many_one_or_none(client: Client) -> None:
    """Beside prices with other tiers, and the same in every row of a price."""
    selections: list[dict[str, list[str]]] = [{}, {"region": []}, {"region": ["", "日本"], "a.b": ["x"]}, {}]
    found = [
        samples.rated(subject=subject, price=str(n), selection=selection, tiers=((5, 7),) * n)
        for n, selection in enumerate(selections)
        for subject in ("a", "b")
    ]
    samples.insert(client, ("rated_usage", samples.rated_table(*found)))
    result = client.query("SELECT selection, length(tiers) FROM rated_usage FINAL ORDER BY subject, price").result_rows
    assert result == [(selection, n) for n, selection in enumerate(selections)] * 2


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Flat(1), "flat"),
        (PerUnit(1), "perunit"),
        (Package(1, 1), "package"),
        (Graduated((Tier(None, 1, 0),)), "graduated"),
        (Volume((Tier(None, 1, 0),)), "volume"),
        (Matrix("region", {"eu": 1}, 1), "matrix"),
    ],
)
def test_models_are_written_by_name_and_selections_in_order(client: Client, model: PriceModel, text: str) -> None:
    """The views read these texts."""
    selection = {"region": ["us", "", "eu", "日本", "Z"], "a": ["b"]}
    found = [samples.rated(subject=subject, model=model, selection=selection) for subject in ("a", "b", "c")]
    samples.insert(client, ("rated_usage", samples.rated_table(*found)))
    result = client.query("SELECT model, selection FROM rated_usage FINAL").result_rows
    assert result == [(text, {"region": ["", "Z", "eu", "us", "日本"], "a": ["b"]})] * 3


def test_versions_are_the_inputs(client: Client) -> None:
    most = 2**40 - 1
    samples.insert(client, ("quotas", samples.quotas_table(samples.quota(inputs=most))))
    assert client.query("SELECT inputs, era, version FROM quotas FINAL").result_rows == [(most, 0, most)]


@pytest.mark.parametrize("newest_first", [False, True])
def test_the_fullest_row_of_a_key_wins(client: Client, newest_first: bool) -> None:
    """A replay writes old totals again, after the new ones."""
    totals = [(1, 1), (30, 3), (20, 2)]
    for value, inputs in totals[::-1] if newest_first else totals:
        samples.insert(
            client,
            ("usage", samples.usage_table(samples.usage(value, inputs))),
            ("rated_usage", samples.rated_table(samples.rated(value, value, inputs))),
            ("quotas", samples.quotas_table(samples.quota(value, inputs))),
            ("progress", rows.progress_table([rows.progress_row(samples.batch(start=inputs, messages=value))])),
        )
    assert stored(client, "SELECT value FROM usage FINAL") == [30]
    assert stored(client, "SELECT amount FROM rated_usage FINAL") == [30]
    assert stored(client, "SELECT used FROM quotas FINAL") == [30]
    assert stored(client, "SELECT messages FROM progress FINAL") == [30]


def test_signals_of_quantities_and_of_amounts_share_columns(client: Client) -> None:
    quantity = samples.signal("q", SignalType.THRESHOLD_REACHED, threshold=QUANTITY_END - 1, used=1)
    amount = samples.signal("s", SignalType.SPEND_REACHED, threshold=AMOUNT_END - 1, used=1)
    samples.insert(client, ("signals", rows.signals_table([quantity, amount])))
    assert client.query("SELECT id, threshold, used FROM signals FINAL ORDER BY id").result_rows == [
        ("q", exact(QUANTITY_END - 1, 12), exact(1, 12)),
        ("s", exact(AMOUNT_END - 1, 24), exact(1, 24)),
    ]


def test_a_period_may_be_a_leap_year_away(client: Client) -> None:
    far = samples.rated(period_start_us=MARCH, period_end_us=MARCH + 366 * DAY_US)
    samples.insert(client, ("rated_usage", samples.rated_table(far)))
    assert stored(client, "SELECT dateDiff('day', period_start, period_end) FROM rated_usage FINAL") == [366]


def test_aggregations_are_written_by_name(client: Client) -> None:
    found = [samples.usage(aggregation=kind, subject=kind.value) for kind in Aggregation]
    samples.insert(client, ("usage", samples.usage_table(*found)))
    assert stored(client, "SELECT DISTINCT subject = aggregation FROM usage FINAL") == [1]
