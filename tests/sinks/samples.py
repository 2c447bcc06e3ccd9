"""Rows of every kind, as the flow makes them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import Any

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from domain.catalog import Aggregation
from domain.quota import QuotaRow, QuotaState, Signal, SignalType, Watched
from domain.rating import Rated, RatedRow
from domain.totals import MemberUpdate, Updates, UsageUpdate
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


def usage(value: int = 1, inputs: int = 1, **changes: Any) -> UsageUpdate:
    """An hour of a sum, the value in whole units."""
    return UsageUpdate(
        "bytes", "cust-1", MARCH, MARCH + HOUR_US, "", 0, (), Aggregation.SUM, value * QUANTITY_SCALE, inputs, 1, None
    )._replace(**changes)


def latest(value: int = 1, **changes: Any) -> UsageUpdate:
    place = (MARCH + 1, 3, 2**47, 2)
    return usage(value, aggregation=Aggregation.LATEST, latest=place)._replace(**changes)


def member(name: str = "u", **changes: Any) -> MemberUpdate:
    return MemberUpdate("bytes", "cust-1", MARCH, MARCH + HOUR_US, "", name)._replace(**changes)


def rated(quantity: int = 1, amount: int = 1, inputs: int = 1, **changes: Any) -> RatedRow:
    """March of a price, quantity and amount in whole units."""
    return RatedRow(
        "cust-1", "pro", "traffic", MARCH, MARCH + 31 * DAY_US, "bytes", quantity * QUANTITY_SCALE,
        amount * AMOUNT_SCALE, "perunit", {"region": ["eu", "us"]}, "EUR",
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


def updated(*found: UsageUpdate | MemberUpdate | RatedRow) -> Rated:
    """One batch's updates."""
    updates = Updates(
        usage=[row for row in found if isinstance(row, UsageUpdate)],
        members=[row for row in found if isinstance(row, MemberUpdate)],
    )
    return Rated(updates, [row for row in found if isinstance(row, RatedRow)], [])


def watched(*found: QuotaRow | Signal) -> Watched:
    return Watched(
        [row for row in found if isinstance(row, QuotaRow)], [row for row in found if isinstance(row, Signal)]
    )


def arrow_tables() -> dict[str, pa.Table]:
    """A table of every kind, with every column that is ever written."""
    one = batch(payloads=(b"a", b"b"), rejected=2, attributes=[{"ce_x": "1"}, None])
    return {
        "events": rows.events_table(one),
        "rejects": rows.rejects_table(one),
        "progress": rows.progress_table([rows.progress_row(one)]),
        "usage": rows.usage_table([usage(), latest()], TOPIC),
        "usage_members": rows.members_table([member()]),
        "rated_usage": rows.rated_table([rated()]),
        "quotas": rows.quotas_table([quota()]),
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
