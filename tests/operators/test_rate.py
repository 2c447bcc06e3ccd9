"""rate, in a dataflow: each update keeps its key and carries its prices."""

from __future__ import annotations

from bytewax.operators import KeyedStream, Stream

from domain.rating import RatedUpdates
from domain.updates import PeriodKey, PriceUpdate, Updates
from domain.values import AMOUNT_SCALE, QUANTITY_SCALE
from operators.rate import rate
from tests.batches import history
from tests.operators.running import run

CATALOG = """
version: 1
timezone: UTC
currency: USD
event_types: {call: {schema: {type: object}}}
meters: {calls: {event_type: call, aggregation: count, window: 1h}}
plans:
  pro:
    prices: [{key: calls, meter: calls, model: per_unit, unit_amount: 2}]
    alerts: [{key: low, amount: 2}, {key: high, amount: 3}]
  quiet: {prices: [{key: calls, meter: calls, model: per_unit, unit_amount: 1}]}
"""
HISTORY = history(CATALOG)


KEY: PeriodKey = ("a", 0, 100)


def period(plan: str, before: int, after: int) -> PriceUpdate:
    held = before * QUANTITY_SCALE if before else None
    return PriceUpdate(plan, "calls", 1, [KEY], [held], [after * QUANTITY_SCALE], [after])


def test_touched_periods_are_priced() -> None:
    updates = [
        ("3", Updates(prices=[period("pro", 0, 1), period("quiet", 2, 5)])),
        ("1", Updates()),
        ("3", Updates(prices=[period("pro", 1, 4)])),
    ]

    def operator(up: Stream[tuple[str, Updates]]) -> KeyedStream[RatedUpdates]:
        return rate("rate", up, HISTORY)

    out = run(updates, operator)
    assert [(shard, rated.updates) for shard, rated in out] == updates
    amounts = [
        [(update.plan, *(row.amount // AMOUNT_SCALE for row in update.rated)) for update in rated.rated]
        for _, rated in out
    ]
    assert amounts == [[("pro", 2), ("quiet", 5)], [], [("pro", 8)]]
    assert all(update.keys == [KEY] for _, rated in out for update in rated.rated)
    spends = [[(s.plan, s.before // AMOUNT_SCALE, s.after // AMOUNT_SCALE) for s in rated.spends] for _, rated in out]
    assert spends == [[("pro", 0, 2)], [], [("pro", 2, 8)]]
