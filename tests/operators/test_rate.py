"""rate, in a dataflow: each update keeps its key and carries its prices."""

from __future__ import annotations

from bytewax.operators import KeyedStream, Stream

from domain.pricing import WHOLE
from domain.rating import Rated
from domain.totals import PeriodUpdate, PriceTotal, Updates
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
    alerts: [{key: high, amount: 3}]
  quiet: {prices: [{key: calls, meter: calls, model: per_unit, unit_amount: 1}]}
"""
HISTORY = history(CATALOG)


def calls(count: int) -> PriceTotal:
    return PriceTotal({WHOLE: count * QUANTITY_SCALE} if count else {}, count)


def period(plan: str, before: int, after: int) -> PeriodUpdate:
    return PeriodUpdate("a", plan, 0, 100, 1, {"calls": calls(before)}, {"calls": calls(after)})


def test_touched_periods_are_priced() -> None:
    updates = [
        ("3", Updates(periods=[period("pro", 0, 1), period("quiet", 2, 5)])),
        ("1", Updates()),
        ("3", Updates(periods=[period("pro", 1, 4)])),
    ]

    def operator(up: Stream[tuple[str, Updates]]) -> KeyedStream[Rated]:
        return rate("rate", up, HISTORY)

    out = run(updates, operator)
    assert [(shard, rated.updates) for shard, rated in out] == updates
    amounts = [[(row.plan, row.amount // AMOUNT_SCALE) for row in rated.rows] for _, rated in out]
    assert amounts == [[("pro", 2), ("quiet", 5)], [], [("pro", 8)]]
    spends = [[(s.plan, s.before // AMOUNT_SCALE, s.after // AMOUNT_SCALE) for s in rated.spends] for _, rated in out]
    assert spends == [[("pro", 0, 2)], [], [("pro", 2, 8)]]
