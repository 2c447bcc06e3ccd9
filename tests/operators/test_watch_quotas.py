"""watch_quotas, in a dataflow: limits and alerts of the version that prices the period, stamped by the clock."""

from __future__ import annotations

from itertools import count

from bytewax.operators import KeyedStream, Stream

from domain.quota import SignalType, Watched
from domain.rating import RatedUpdates, Spend
from domain.updates import QuotaUpdate, Updates
from domain.values import AMOUNT_SCALE, QUANTITY_SCALE
from operators.watch_quotas import watch_quotas
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
    entitlements:
      - {feature: api, kind: metered, meter: calls, limit: 10, period: day, thresholds: [0.5, 1.0]}
      - {feature: sso, kind: boolean, enabled: true}
    alerts: [{key: high, amount: 3}, {key: higher, amount: 7}]
"""
HISTORY = history(
    CATALOG, ("2026-02-01T00:00:00Z", CATALOG.replace("limit: 10", "limit: 20").replace("amount: 7", "amount: 6"))
)


def quota(before: int, after: int, version: int = 1) -> QuotaUpdate:
    key = ("a", 0, 100)
    return QuotaUpdate("pro", "api", version, [key], [before * QUANTITY_SCALE], [after * QUANTITY_SCALE], [after])


def spent(before: int, after: int, version: int = 1) -> Spend:
    return Spend("pro", version, ("a", 0, 100), before * AMOUNT_SCALE, after * AMOUNT_SCALE)


def watched(*items: RatedUpdates) -> list[Watched]:
    ticks = count(100)

    def operator(up: Stream[tuple[str, RatedUpdates]]) -> KeyedStream[Watched]:
        return watch_quotas("watch_quotas", up, HISTORY, lambda: next(ticks))

    out = run([(str(n), item) for n, item in enumerate(items)], operator)
    assert [key for key, _ in out] == [str(n) for n in range(len(items))]
    return [found for _, found in out]


def test_every_touched_quota_has_a_row_and_every_threshold_crossed_a_signal() -> None:
    out = watched(
        RatedUpdates(Updates(quotas=[quota(0, 4), quota(4, 5)]), [], []),
        RatedUpdates(Updates(), [], []),
        RatedUpdates(Updates(quotas=[quota(5, 12)]), [], [spent(2, 3), spent(3, 8)]),
    )
    assert [
        [
            (used // QUANTITY_SCALE, state)
            for rows in found.quotas
            for used, state in zip(rows.used, rows.states, strict=True)
        ]
        for found in out
    ] == [
        [(4, "ok"), (5, "warning")],
        [],
        [(12, "exceeded")],
    ]
    assert [[(signal.type, signal.feature, signal.at_us) for signal in found.signals] for found in out] == [
        [(SignalType.THRESHOLD_REACHED, "api", 100)],
        [],
        [
            (SignalType.EXCEEDED, "api", 102),
            (SignalType.SPEND_REACHED, "high", 102),
            (SignalType.SPEND_REACHED, "higher", 102),
        ],
    ]


def test_limits_and_alerts_are_those_of_the_pricing_version() -> None:
    first, second = watched(
        RatedUpdates(Updates(quotas=[quota(9, 12, version=1)]), [], [spent(5, 6, version=1)]),
        RatedUpdates(Updates(quotas=[quota(9, 12, version=2)]), [], [spent(5, 6, version=2)]),
    )
    assert [(rows.entitlement.limit // QUANTITY_SCALE, rows.states) for rows in (*first.quotas, *second.quotas)] == [
        (10, ["exceeded"]),
        (20, ["warning"]),
    ]
    assert [signal.type for signal in first.signals] == [SignalType.EXCEEDED]
    assert [(signal.type, signal.catalog_version) for signal in second.signals] == [
        (SignalType.THRESHOLD_REACHED, 2),
        (SignalType.SPEND_REACHED, 2),
    ]


def test_the_clock_does_nothing_but_stamp() -> None:
    rated = RatedUpdates(Updates(quotas=[quota(0, 20)]), [], [spent(0, 9)])
    first, second = watched(rated, rated)
    assert [s._replace(at_us=0) for s in first.signals] == [s._replace(at_us=0) for s in second.signals]
    assert {s.at_us for s in first.signals} != {s.at_us for s in second.signals}
