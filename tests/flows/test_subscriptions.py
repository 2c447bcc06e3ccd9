"""A customer signs up, changes plans and leaves while the flow runs: by hand, and as the oracle says."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from config.catalog import CatalogError
from flows.catalogs import apply_catalog
from tests.batches import us
from tests.flows.places import Place, StopAfter, check, expected

CATALOG = """
version: 1
currency: USD
event_types:
  call: {schema: {type: object, required: [n], properties: {n: {type: integer, minimum: 0}}}}
meters:
  calls: {event_type: call, aggregation: sum, value: n, window: 1h}
plans:
  free: {entitlements: [{feature: calls, kind: metered, meter: calls, limit: 10, period: month}]}
  pro:
    prices: [{key: calls, meter: calls, model: graduated, tiers: [{up_to: 20, unit_amount: 0}, {unit_amount: "0.1"}]}]
    entitlements: [{feature: calls, kind: metered, meter: calls, limit: 100, period: billing, thresholds: [0.3, 1]}]
  team:
    prices: [{key: calls, meter: calls, model: per_unit, unit_amount: "0.05"}]
    entitlements: [{feature: calls, kind: metered, meter: calls, limit: 1000, period: billing}]
default_plan: free
"""


class Log:
    """One file's lines, with ids that rise."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def add(self, time: str, subject: str = "c7", **data: Any) -> None:
        type_ = "call" if "n" in data else "tallyflow.subscription"
        whole = {
            "specversion": "1.0", "id": str(len(self.lines)), "source": "s", "type": type_, "subject": subject,
            "time": f"2026-{time}:00Z", "data": data,
        }  # fmt: skip
        self.lines.append(json.dumps(whole).encode() + b"\n")

    def content(self) -> list[bytes]:
        return [b"".join(self.lines)]


@pytest.mark.parametrize("stops", [0, 4])
def test_a_sign_up_a_change_and_a_cancellation(place: Place, stops: int) -> None:
    """A line a batch; the run is stopped after so many batches again and again, each time in mid-state."""
    log = Log()
    log.add("03-14T10:00", n=4)
    log.add("03-15T09:00", action="create", plan="pro", start="2026-03-15", timezone="Asia/Tokyo")
    log.add("03-15T10:00", n=30)
    log.add("03-14T11:00", n=3)  # late, of the time before
    log.add("03-20T09:00", action="change", plan="team")
    log.add("03-20T09:00", action="create", plan="team")  # refused
    log.add("04-14T14:59", n=5)
    log.add("04-14T15:00", n=7)  # midnight in Tokyo
    log.add("04-20T00:00", action="end", end="2026-04-25")
    log.add("04-24T15:00", n=1)
    place.write(log.content())
    while True:
        found = place.run(CATALOG, StopAfter(stops) if stops else None, batch_rows_max=1)
        if len(found.tables.events) + len(found.tables.rejects) == len(log.lines):
            break
    check(found.tables, expected([(0, CATALOG)], log.content()))

    tables = found.tables
    rated = {(plan, start): row["amount"] for (_, plan, _, start, _), row in tables.rated_usage.items()}
    assert rated == {
        ("pro", us("2026-03-14T15:00:00Z")): Decimal("1.5"),  # 35, of which 20 are free
        ("team", us("2026-04-14T15:00:00Z")): Decimal("0.35"),
    }
    used = {(plan, start): int(row["used"]) for (_, plan, _, start), row in tables.quotas.items()}
    assert used == {
        ("free", us("2026-03-01T00:00:00Z")): 7,
        ("pro", us("2026-03-14T15:00:00Z")): 35,
        ("team", us("2026-04-14T15:00:00Z")): 7,
        ("free", us("2026-04-01T00:00:00Z")): 1,
    }
    signals = sorted((key[0], key[4]) for key in tables.signals)
    assert signals == [("quota.reset", 100), ("quota.threshold_reached", 30)]
    assert [(key[2], row["reason"]) for key, row in tables.rejects.items()] == [(5, "subscription_invalid")]
    assert [row["action"] for _, row in sorted(tables.subscriptions.items())] == ["create", "change", "end"]


def test_a_catalog_may_not_contradict_what_events_made(place: Place) -> None:
    log = Log()
    log.add("03-15T09:00", action="create", plan="pro", start="2026-03-15")
    place.write(log.content())
    place.run(CATALOG)
    seed = "subscriptions: [{subject: c7, plan: team, start: 2026-03-20}]\n"
    with place.start(None) as deployment, deployment.client() as client:
        with pytest.raises(CatalogError, match="overlaps the subscription from 2026-03-15 until further notice"):
            apply_catalog(client, CATALOG + seed)
        with pytest.raises(CatalogError, match=r"plans\.pro: is gone, but events subscribed 1 subject to it"):
            apply_catalog(client, CATALOG.replace("  pro:", "  gold:"))
        assert apply_catalog(client, CATALOG + seed.replace("c7", "c8")).added == 2
