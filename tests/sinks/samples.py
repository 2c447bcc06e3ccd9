"""Rows of every kind, as the flow makes them.

What the flow holds as columns is written here row by row; `usage_updates`, `rated_updates` and
`quota_states` turn neighbouring rows that belong together into one update with several rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from domain.catalog import Aggregation, Entitlement, Price
from domain.pricing import PerUnit, PriceModel, Rated
from domain.quota import QuotaState, QuotaStates, Signal, SignalType, Watched
from domain.rating import RatedUpdate, RatedUpdates
from domain.updates import MemberUpdate, Updates, UsageUpdate
from domain.values import (
    AMOUNT_SCALE,
    DAY_US,
    HOUR_US,
    QUANTITY_SCALE,
    Batch,
    Events,
    Position,
    RawBatch,
    Reason,
    Refusal,
    Rejects,
)
from sinks import rows

TOPIC = "usage"
MARCH = 1_772_323_200_000_000
"""2026-03-01T00:00:00Z"""


class UsageRow(NamedTuple):
    """A window of a meter."""

    meter: str
    subject: str
    window_start_us: int
    window_end_us: int
    dimensions_key: str
    booked_on_day: int
    labels: tuple[str, ...]
    aggregation: Aggregation
    value: int
    inputs: int
    catalog_version: int
    latest: tuple[int, int, int, int]
    """(time_us, partition, offset, index); of `latest` meters only."""


class RatedRow(NamedTuple):
    """A billing period of a price."""

    subject: str
    plan: str
    price: str
    period_start_us: int
    period_end_us: int
    meter: str
    quantity: int
    amount: int
    model: PriceModel
    selection: dict[str, list[str]]
    currency: str
    tiers: tuple[tuple[int, int], ...]
    inputs: int
    catalog_version: int


class QuotaRow(NamedTuple):
    """A period of an entitlement."""

    subject: str
    plan: str
    feature: str
    period_start_us: int
    period_end_us: int
    meter: str
    used: int
    allowance: int
    state: QuotaState
    inputs: int
    catalog_version: int
    since_us: int = 0


def batch(
    start: int = 0,
    payloads: tuple[bytes, ...] = (b"{}",),
    rejected: int = 0,
    attributes: list[dict[str, str] | None] | None = None,
    **raw: Any,
) -> Batch:
    """Accepted events with these payloads from offset `start` on, then rejected ones of every kind in turn."""
    count = len(payloads)
    after = start + count + rejected
    events = Events(
        offsets=list(range(start, start + count)),
        indexes=[0] * count,
        log_times_us=[MARCH + n for n in range(count)],
        times_us=[MARCH - n for n in range(count)],
        sources=["svc"] * count,
        ids=[f"id-{start + n}" for n in range(count)],
        types=["call"] * count,
        subjects=["cust-1"] * count,
        payloads=list(payloads),
        attributes=attributes,
        data=[None] * count,
        contents=[2**64 - 1 - n for n in range(count)],
        catalog_versions=[1] * count,
    )
    rejects = Rejects()
    for n in range(rejected):
        known = n % 2 == 1
        position = Position(0, start + count + n, 0)
        reason = Reason.DUPLICATE if known else Reason.MALFORMED
        refusal = Refusal(reason, "why", MARCH if known else 0)
        rejects.add(position, b"\xff", refusal, Position(3, 7, 1) if known else None, 5 if known else 0)
    values: dict[str, Any] = {
        "topic": TOPIC, "partition": 0, "start_offset": start, "next_offset": after,
        "offsets": list(range(start, after)),
        "indexes": [0] * (after - start), "payloads": [b""] * (after - start), "messages": after, "events": after,
    }  # fmt: skip
    return Batch(RawBatch(**values | raw), events, rejects)


def usage(value: int = 1, inputs: int = 1, **changes: Any) -> UsageRow:
    """An hour of a sum, the value in whole units."""
    return UsageRow(
        "bytes", "cust-1", MARCH, MARCH + HOUR_US, "", 0, (), Aggregation.SUM, value * QUANTITY_SCALE, inputs, 1,
        (MARCH + 1, 3, 2**47, 2),
    )._replace(**changes)  # fmt: skip


def latest(value: int = 1, **changes: Any) -> UsageRow:
    """An hour of a meter that has the latest value: another one, as a meter has one aggregation."""
    return usage(value, meter="level", aggregation=Aggregation.LATEST)._replace(**changes)


def member(name: str = "u", **changes: Any) -> MemberUpdate:
    return MemberUpdate("bytes", "cust-1", MARCH, MARCH + HOUR_US, "", name)._replace(**changes)


def rated(quantity: int = 1, amount: int = 1, inputs: int = 1, **changes: Any) -> RatedRow:
    """March of a price, quantity and amount in whole units."""
    return RatedRow(
        "cust-1", "pro", "traffic", MARCH, MARCH + 31 * DAY_US, "bytes", quantity * QUANTITY_SCALE,
        amount * AMOUNT_SCALE, PerUnit(QUANTITY_SCALE), {"region": ["eu", "us"]}, "EUR",
        ((quantity * QUANTITY_SCALE, amount * AMOUNT_SCALE),), inputs, 1,
    )._replace(**changes)  # fmt: skip


def quota(used: int = 1, inputs: int = 1, **changes: Any) -> QuotaRow:
    return QuotaRow(
        "cust-1", "pro", "api", MARCH, MARCH + DAY_US, "bytes", used * QUANTITY_SCALE, 10 * QUANTITY_SCALE,
        QuotaState.OK, inputs, 1,
    )._replace(**changes)  # fmt: skip


def signal(id: str = "a", type: SignalType = SignalType.EXCEEDED, **changes: Any) -> Signal:
    scale = AMOUNT_SCALE if type is SignalType.SPEND_REACHED else QUANTITY_SCALE
    return Signal(
        id, type, "cust-1", "api", "bytes", MARCH, MARCH + DAY_US, 10 * scale, 10 * scale, 11 * scale, MARCH, 1
    )._replace(**changes)


def usage_updates(found: Iterable[UsageRow]) -> list[UsageUpdate]:
    """An update for each run of rows of one meter."""
    updates = []
    for (meter, labels, aggregation), run in groupby(found, lambda row: (row.meter, row.labels, row.aggregation)):
        family = list(run)
        updates.append(
            UsageUpdate(
                meter,
                labels,
                aggregation,
                [(r.subject, r.window_start_us, r.window_end_us, r.booked_on_day, r.dimensions_key) for r in family],
                [(*r.latest, r.value) if aggregation is Aggregation.LATEST else r.value for r in family],
                [r.inputs for r in family],
                [r.catalog_version for r in family],
            )
        )
    return updates


def rated_updates(found: Iterable[RatedRow]) -> list[RatedUpdate]:
    """An update for each run of rows of one price in one catalog version."""
    updates = []
    for (plan, price, currency, version), run in groupby(
        found, lambda row: (row.plan, _price(row), row.currency, row.catalog_version)
    ):
        family = list(run)
        updates.append(
            RatedUpdate(
                plan,
                price,
                currency,
                version,
                [(r.subject, r.period_start_us, r.period_end_us) for r in family],
                [r.quantity for r in family],
                [Rated(r.amount, r.tiers) for r in family],
                [r.inputs for r in family],
            )
        )
    return updates


def _price(row: RatedRow) -> Price:
    return Price(row.price, row.meter, row.model, {label: frozenset(values) for label, values in row.selection.items()})


def quota_states(found: Iterable[QuotaRow]) -> list[QuotaStates]:
    """States for each run of rows of one entitlement in one catalog version."""
    states = []
    for (plan, entitlement, version), run in groupby(
        found, lambda row: (row.plan, _entitlement(row), row.catalog_version)
    ):
        family = list(run)
        states.append(
            QuotaStates(
                plan,
                entitlement,
                version,
                [(r.subject, r.period_start_us, r.period_end_us) for r in family],
                [r.used for r in family],
                [r.state for r in family],
                [r.inputs for r in family],
                [r.since_us for r in family],
            )
        )
    return states


def _entitlement(row: QuotaRow) -> Entitlement:
    return Entitlement(row.feature, "metered", row.meter, row.allowance)


def updated(*found: UsageRow | MemberUpdate | RatedRow) -> RatedUpdates:
    """One batch's updates."""
    updates = Updates(
        usage=usage_updates(row for row in found if isinstance(row, UsageRow)),
        members=[row for row in found if isinstance(row, MemberUpdate)],
    )
    return RatedUpdates(updates, rated_updates(row for row in found if isinstance(row, RatedRow)), [])


def watched(*found: QuotaRow | Signal) -> Watched:
    return Watched(
        quota_states(row for row in found if isinstance(row, QuotaRow)),
        [row for row in found if isinstance(row, Signal)],
    )


def usage_table(*found: UsageRow) -> pa.Table:
    return pa.concat_tables([rows.usage_table(update, TOPIC) for update in usage_updates(found)])


def rated_table(*found: RatedRow) -> pa.Table:
    return pa.concat_tables([rows.rated_table(update) for update in rated_updates(found)])


def quotas_table(*found: QuotaRow) -> pa.Table:
    return pa.concat_tables([rows.quotas_table(states) for states in quota_states(found)])


def arrow_tables() -> dict[str, pa.Table]:
    """A table of every kind, with every column that is ever written."""
    one = batch(payloads=(b"a", b"b"), rejected=2, attributes=[{"ce_x": "1"}, None])
    return {
        "events": rows.events_table(one),
        "rejects": rows.rejects_table(one),
        "subscriptions": rows.subscriptions_table(one),
        "progress": rows.progress_table([rows.progress_row(one)]),
        "usage": usage_table(usage(), latest()),
        "usage_members": rows.members_table([member()]),
        "rated_usage": rated_table(rated()),
        "quotas": quotas_table(quota()),
        "signals": rows.signals_table([signal()]),
    }


def insert(client: Client, *tables: tuple[str, pa.Table]) -> None:
    for name, table in tables:
        client.insert_arrow(name, table)


def exact_sum(values: Iterable[Decimal | int]) -> Decimal:
    """A sum that is not rounded, as Python's own is beyond 28 digits."""
    with localcontext(prec=200):
        return sum((Decimal(value) for value in values), Decimal(0))


def us(*columns: str) -> str:
    """Selects instants as the oracle has them."""
    return ", ".join(f"toUnixTimestamp64Micro({column}) AS {column}_us" for column in columns)
